//! Kills the orchestrator again and again, and looks whether anything it had accepted is lost.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, IsTerminal, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{Error, Options, chance::Chance};

/// An orchestrator that works lives for at most so long.
const LIFE: Duration = Duration::from_millis(600);

/// What the children have said.
#[derive(Debug, Default)]
struct Heard {
    accepted: HashSet<String>,
    over: HashSet<String>,
    /// Sagas that were taken up from a dead orchestrator, and in which time.
    taken: u64,
    taking: Duration,
}

/// The number of promises that were broken.
pub fn run(data: &Path, seed: u64, options: &Options) -> Result<usize, Error> {
    let kills = options.kills;
    println!("{kills} kills under load; --seed {seed} repeats them");
    let heard = Arc::new(Mutex::new(Heard::default()));
    let began = Instant::now();
    let mut chance = Chance::new(seed, u64::MAX);
    for round in 0..kills {
        let (early, life) = (chance.below(4) == 0, chance.up_to(LIFE));
        let mut worker = Worker::start(command(data, seed, round, options)?, &heard)?;
        // One in four is killed while it starts and takes up what was left, the others while they work.
        if !early {
            worker.ready()?;
        }
        std::thread::sleep(life);
        if let Some(status) = worker.child.try_wait()? {
            return Err(format!("orchestrator {round} has ended by itself: {status}").into());
        }
        worker.child.kill()?; // SIGKILL
        worker.end()?;
        show(&heard, round + 1, kills, began);
    }
    let mut last = command(data, seed, kills, options)?;
    last.arg("--last");
    let worker = Worker::start(last, &heard)?;
    worker.ready()?;
    let status = worker.end()?;
    show(&heard, kills, kills, began);
    println!();
    let heard = heard.lock().map_err(|_| "a listener has panicked")?;
    let lost: Vec<&String> = heard.accepted.difference(&heard.over).collect();
    // What ended just before a kill was perhaps not told any more; the store knows.
    let lost = unfinished(data, &lost)?;
    println!(
        "\n{} orders accepted, {} lost; {} sagas taken over from the dead in {:.1} s, {:.0}/s; {:.0} s in all",
        heard.accepted.len(),
        lost.len(),
        heard.taken,
        heard.taking.as_secs_f64(),
        heard.taken as f64 / heard.taking.as_secs_f64().max(0.001),
        began.elapsed().as_secs_f64(),
    );
    for id in lost.iter().take(10) {
        println!("  lost: {id}");
    }
    if !status.success() {
        println!("  the last orchestrator has failed: {status}");
    }
    Ok(usize::from(!lost.is_empty()) + usize::from(!status.success()))
}

/// Those that are not over in the store either.
fn unfinished(data: &Path, ids: &[&String]) -> Result<Vec<String>, Error> {
    let store = rusqlite::Connection::open(data.join("sagas.db"))?;
    let mut over = store.prepare("select count(*) from saga where id = ?1 and finished is not null")?;
    let mut lost = Vec::new();
    for id in ids {
        if over.query_row([id], |row| row.get::<_, i64>(0))? != 1 {
            lost.push((*id).clone());
        }
    }
    Ok(lost)
}

/// This program once more, as an orchestrator.
fn command(data: &Path, seed: u64, round: u32, options: &Options) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--data").arg(data).args(["--seed", &seed.to_string(), "--worker", &round.to_string()]);
    if options.wrong_keys {
        command.arg("--wrong-keys");
    }
    Ok(command)
}

struct Worker {
    child: Child,
    ready: mpsc::Receiver<()>,
    listener: JoinHandle<()>,
}

impl Worker {
    fn start(mut command: Command, heard: &Arc<Mutex<Heard>>) -> Result<Self, Error> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = child.stdout.take().ok_or("the child has no output")?;
        let (told, ready) = mpsc::channel();
        let heard = heard.clone();
        let listener = std::thread::spawn(move || listen(lines, &heard, &told));
        Ok(Worker { child, ready, listener })
    }

    fn ready(&self) -> Result<(), Error> {
        let waited = self.ready.recv_timeout(Duration::from_secs(60));
        waited.map_err(|_| "an orchestrator does not come up".into())
    }

    /// Waits until it is dead and everything that it said was heard.
    fn end(mut self) -> Result<std::process::ExitStatus, Error> {
        let status = self.child.wait()?;
        self.listener.join().map_err(|_| "a listener has panicked")?;
        Ok(status)
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
    let Heard { accepted, over, taken, taking } = &*heard;
    let rate = *taken as f64 / taking.as_secs_f64().max(0.001);
    let text = format!(
        "{:4.0} s  kills {kills}/{all}  accepted {}  over {}  taken over {taken} ({rate:.0}/s)",
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
