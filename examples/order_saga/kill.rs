//! Kills the orchestrator again and again, and looks whether anything it had accepted is lost. Where two live at once, one of them now and
//! then only stands still until the other has its sagas, and goes on.

use std::{
    collections::{HashSet, VecDeque},
    io::{BufRead, BufReader, IsTerminal, Write},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Error, Options, audit,
    chance::Chance,
    store::{LEASE, Place},
};

/// An orchestrator that works lives for at most so long.
const LIFE: Duration = Duration::from_millis(600);

/// A run of so many kills in which nobody stood still, where that could be, has not tried what it should.
const MANY: u32 = 50;

/// How much longer than its patience the last one may take to end.
const GRACE: Duration = Duration::from_secs(30);

/// What the children have said.
#[derive(Debug, Default)]
struct Heard {
    accepted: HashSet<String>,
    over: HashSet<String>,
    /// Sagas that were taken up from a dead orchestrator, and in which time.
    taken: u64,
    taking: Duration,
}

/// The sagas that were accepted, and the number of promises that were broken.
pub async fn run(
    data: &Path,
    place: &Place,
    seed: u64,
    options: &Options,
) -> Result<(HashSet<String>, usize), Error> {
    let kills = options.kills;
    println!("{kills} kills under load; --seed {seed} repeats them");
    let heard = Arc::new(Mutex::new(Heard::default()));
    let began = Instant::now();
    let mut chance = Chance::new(seed, u64::MAX);
    let (mut living, mut killed, mut stalls) = (VecDeque::<Worker>::new(), 0, 0);
    for round in 0..kills {
        let (early, life) = (chance.below(4) == 0 && round > 0, chance.up_to(LIFE));
        let worker = Worker::start(round, command(data, place, seed, round, options)?, &heard)?;
        // One in four is not waited for: where one lives at a time, it is killed while it takes up what was left. The first makes the
        // files, which two cannot do at once.
        if !early {
            worker.ready()?;
        }
        living.push_back(worker);
        std::thread::sleep(life);
        if living.len() > 1 && chance.below(4) == 0 {
            // The older one stands still in the middle of whatever it was at, until the other has its sagas, and does not know of it
            // when it goes on.
            living[0].signal("STOP")?;
            std::thread::sleep(LEASE * 3 / 2 + chance.up_to(LEASE));
            living[0].signal("CONT")?;
            stalls += 1;
            // Some time later it is killed, or the other one in its place.
            std::thread::sleep(chance.up_to(LIFE));
            if chance.below(2) == 0 {
                living.rotate_left(1);
            }
        }
        let last = round + 1 == kills;
        while living.len() > if last { 0 } else { place.beside() } {
            let Some(worker) = living.pop_front() else { break };
            worker.kill()?;
            killed += 1;
            show(&heard, killed, kills, began);
        }
    }
    let mut last = command(data, place, seed, kills, options)?;
    last.arg("--last").args(["--patience", &options.patience.as_secs().to_string()]);
    let status = Worker::start(kills, last, &heard)?.end(options.patience + GRACE)?;
    show(&heard, killed, kills, began);
    println!();
    // What ended just before a kill was perhaps not told any more; the store knows.
    let sagas = audit::sagas(place.open().await?.journal()).await?;
    let mut heard = heard.lock().map_err(|_| "a listener has panicked")?;
    let over: HashSet<&String> = sagas.completed.iter().chain(&sagas.compensated).collect();
    let lost: Vec<&String> = heard.accepted.iter().filter(|id| !over.contains(id)).collect();
    println!(
        "\n{} orders accepted, {} lost; sagas changed hands {} times; {killed} kills, {stalls} stalls, {:.0} s in all",
        heard.accepted.len(),
        lost.len(),
        sagas.moves,
        began.elapsed().as_secs_f64(),
    );
    if place.beside() == 0 {
        let seconds = heard.taking.as_secs_f64();
        let rate = heard.taken as f64 / seconds.max(0.001);
        println!("{} sagas were taken up at starts, in {seconds:.1} s, {rate:.0}/s", heard.taken);
    }
    let untried = place.beside() > 0 && kills >= MANY && stalls == 0;
    if untried {
        println!("  none has stood still: nothing was seen of owners that go on when they are none any more");
    }
    for id in lost.iter().take(10) {
        println!("  lost: {id}");
    }
    match status {
        Some(status) if status.success() => {}
        Some(status) => println!("  the last orchestrator has failed: {status}"),
        None => println!("  the last orchestrator did not end, and was killed"),
    }
    let failed = !status.is_some_and(|status| status.success());
    let broken = [!lost.is_empty(), failed, untried].map(usize::from).iter().sum();
    Ok((std::mem::take(&mut heard.accepted), broken))
}

/// This program once more, as an orchestrator.
fn command(data: &Path, place: &Place, seed: u64, round: u32, options: &Options) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--data").arg(data).args(["--seed", &seed.to_string(), "--worker", &round.to_string()]);
    command.args(place.arguments());
    if options.wrong_keys {
        command.arg("--wrong-keys");
    }
    Ok(command)
}

struct Worker {
    round: u32,
    child: Child,
    ready: mpsc::Receiver<()>,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(round: u32, mut command: Command, heard: &Arc<Mutex<Heard>>) -> Result<Self, Error> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = child.stdout.take().ok_or("the child has no output")?;
        let (told, ready) = mpsc::channel();
        let heard = heard.clone();
        let listener = std::thread::spawn(move || listen(lines, &heard, &told));
        Ok(Worker { round, child, ready, listener: Some(listener) })
    }

    fn ready(&self) -> Result<(), Error> {
        let waited = self.ready.recv_timeout(Duration::from_secs(60));
        waited.map_err(|_| format!("orchestrator {} does not come up", self.round).into())
    }

    /// By the shell: the standard library sends no signal but SIGKILL.
    fn signal(&self, name: &str) -> Result<(), Error> {
        let sent =
            Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("SIG{name} was not sent: {sent}").into()) }
    }

    /// Kills it, which is an error when it has ended by itself, and waits until everything that it said was heard.
    fn kill(mut self) -> Result<(), Error> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("orchestrator {} has ended by itself: {status}", self.round).into());
        }
        self.child.kill()?; // SIGKILL
        self.child.wait()?;
        self.heard()
    }

    /// Waits until it has ended by itself; none when it did not within `limit`.
    fn end(mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                self.heard()?;
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }

    fn heard(&mut self) -> Result<(), Error> {
        let listener = self.listener.take().map(JoinHandle::join);
        listener.transpose().map_err(|_| "a listener has panicked")?;
        Ok(())
    }
}

/// None is left behind, whatever becomes of the run.
impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(lines: ChildStdout, heard: &Mutex<Heard>, ready: &mpsc::Sender<()>) {
    let mut lines = BufReader::new(lines);
    let mut line = String::new();
    // A line that the kill has cut short was not said.
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Ok(mut heard) = heard.lock() else { return };
        match words[..] {
            ["accepted", id] => drop(heard.accepted.insert(id.to_owned())),
            ["over", id] => drop(heard.over.insert(id.to_owned())),
            ["ready", left, ms] => {
                heard.taken += left.parse::<u64>().unwrap_or_default();
                heard.taking += Duration::from_millis(ms.parse().unwrap_or_default());
                let _ = ready.send(());
            }
            _ => {}
        }
        drop(heard);
        line.clear();
    }
}

fn show(heard: &Mutex<Heard>, kills: u32, all: u32, began: Instant) {
    let Ok(heard) = heard.lock() else { return };
    let Heard { accepted, over, .. } = &*heard;
    let text = format!(
        "{:4.0} s  kills {kills}/{all}  accepted {}  over {}",
        began.elapsed().as_secs_f64(),
        accepted.len(),
        over.intersection(accepted).count(),
    );
    if std::io::stdout().is_terminal() {
        print!("\r{text}");
        let _ = std::io::stdout().flush();
    } else if kills % 10 == 0 || kills == all {
        println!("{text}");
    }
}
