//! A process for each service, supervised: one that dies is started anew.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use order_kit::{
    BoxError,
    context::known,
    env::{self, Env},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
};

use crate::{remote::Remote, services, system::longest_end};

/// How long a service may take until it answers.
const READY: Duration = Duration::from_secs(20);
/// How long the supervisor waits before it starts a process anew; doubled while it dies at once.
const AGAIN: Duration = Duration::from_millis(100);

/// How processes are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program; by default this one.
    pub program: PathBuf,
    /// The gateway's port; the others follow.
    pub port_base: u16,
    /// Where everybody's data is.
    pub data: PathBuf,
    /// What is set for them beside the process's own environment.
    pub variables: Vec<(String, String)>,
    /// What they print goes here; nowhere, if it is not given.
    pub log: Option<PathBuf>,
}

impl Options {
    /// As the processes see it.
    fn env(&self) -> Env {
        self.variables.iter().fold(Env::process(), |env, (name, value)| env.with(name, value.clone()))
    }
}

/// The process of each service, while it has one.
type Pids = Arc<Mutex<Vec<(&'static str, Option<u32>)>>>;

/// A system of processes that run. Dropping it kills them.
#[derive(Debug)]
pub struct Processes {
    options: Options,
    pids: Pids,
    stop: watch::Sender<bool>,
    supervisors: JoinSet<()>,
}

impl Processes {
    /// Starts all, and waits until each is ready.
    ///
    /// # Errors
    ///
    /// That one is not, in 20 s.
    pub async fn start(options: Options) -> Result<Self, BoxError> {
        std::fs::create_dir_all(&options.data)?;
        let (stop, stopped) = watch::channel(false);
        let pids = Arc::new(Mutex::new(services::ALL.iter().map(|part| (*part, None)).collect()));
        let mut supervisors = JoinSet::new();
        for part in services::ALL {
            supervisors.spawn(supervise(part, options.clone(), pids.clone(), stopped.clone()));
        }
        let processes = Processes { options, pids, stop, supervisors };
        let remote = processes.remote();
        for part in services::ALL {
            if known(part).is_some() {
                remote.until(READY, part, "/health/ready", |answer| answer.status == 200).await?;
            }
        }
        Ok(processes)
    }

    /// Whoever calls it from outside.
    pub fn remote(&self) -> Remote {
        Remote::at(self.options.port_base, &self.options.env())
    }

    /// The process of a service, while it has one.
    pub fn pid(&self, part: &str) -> Option<u32> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.iter().find(|(name, _)| *name == part).and_then(|(_, pid)| *pid)
    }

    /// All of them.
    pub fn pids(&self) -> Vec<(&'static str, Option<u32>)> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `kill -9`. The process that died.
    ///
    /// # Errors
    ///
    /// That there is none, or it cannot be killed.
    pub async fn kill(&self, part: &str) -> Result<u32, BoxError> {
        let pid = self.pid(part).ok_or_else(|| format!("{part} has no process"))?;
        signal("KILL", pid).await?;
        Ok(pid)
    }

    /// Waits until a service that was killed has a new process that is ready.
    ///
    /// # Errors
    ///
    /// That it has none in 20 s.
    pub async fn back(&self, part: &str, old: u32) -> Result<u32, BoxError> {
        let end = tokio::time::Instant::now() + READY;
        while self.pid(part).is_none_or(|pid| pid == old) {
            if tokio::time::Instant::now() > end {
                return Err(format!("{part} was not started anew").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.remote().until(READY, part, "/health/ready", |answer| answer.status == 200).await?;
        self.pid(part).ok_or_else(|| format!("{part} has no process").into())
    }

    /// Ends all in order, by SIGTERM; what has not ended in [the longest time](longest_end) that it may take is killed.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.supervisors.join_next().await.is_some() {}
    }
}

/// The first of some ports in a row that nobody listens on: enough for all services, and for users by gRPC.
///
/// # Errors
///
/// That there are none.
pub fn free_ports() -> Result<u16, BoxError> {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below those that the system gives to whoever connects, which would be taken by the time they are listened on.
    const RUNS: u16 = 750;
    let start = u16::try_from(std::process::id() % u32::from(RUNS))?;
    (0..RUNS)
        .map(|step| 20_000 + (start + step) % RUNS * 16)
        .find(|base| (*base..base + 12).all(free))
        .ok_or_else(|| "no free ports".into())
}

/// The files of databases that a process has open, brokers' among them. Only where there is `/proc`.
///
/// # Errors
///
/// That nobody can say.
pub fn databases(pid: u32) -> std::io::Result<BTreeSet<PathBuf>> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(open.filter(|path| path.extension().is_some_and(|it| it == "db")).collect())
}

/// Sends a signal, by the system's own program.
async fn signal(name: &str, pid: u32) -> Result<(), BoxError> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().await?;
    if status.success() { Ok(()) } else { Err(format!("process {pid} could not be sent {name}").into()) }
}

async fn supervise(part: &'static str, options: Options, pids: Pids, mut stop: watch::Receiver<bool>) {
    let set = |pid| {
        let mut pids = pids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pids.iter_mut().find(|(name, _)| *name == part) {
            entry.1 = pid;
        }
    };
    let mut wait = AGAIN;
    while !*stop.borrow() {
        let began = tokio::time::Instant::now();
        match spawn(part, &options) {
            Ok(mut child) => {
                set(child.id());
                // Waiting would close it, and say that nobody is left.
                let _parent = child.stdin.take();
                tokio::select! {
                    ended = child.wait() => tracing::warn!(service = part, ?ended, "a process died"),
                    () = stopped(&mut stop) => {
                        end(&mut child, longest_end(&options.env())).await;
                        set(None);
                        return;
                    }
                }
                set(None);
            }
            Err(error) => tracing::error!(service = part, %error, "a process could not be started"),
        }
        wait = if began.elapsed() > Duration::from_secs(5) {
            AGAIN
        } else {
            (wait * 2).min(Duration::from_secs(5))
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that nobody is left who could want it to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ends a process by SIGTERM; kills it if it has not ended after so long.
pub(crate) async fn end(child: &mut Child, patience: Duration) {
    if let Some(pid) = child.id() {
        let _ = signal("TERM", pid).await;
        if tokio::time::timeout(patience, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

fn spawn(part: &str, options: &Options) -> Result<Child, BoxError> {
    let mut command = Command::new(&options.program);
    command
        .args(["serve", part, "--with-parent", "--port-base"])
        .arg(options.port_base.to_string())
        .arg("--data")
        .arg(&options.data)
        // The gateway among them keeps the registry, wherever they listen.
        .env(env::GATEWAY_URL, format!("http://127.0.0.1:{}", options.port_base))
        .envs(options.variables.iter().cloned())
        // A supervisor's own ports are nobody else's.
        .env_remove(env::PORT)
        .env_remove(env::GRPC_PORT)
        // It ends when this end of the pipe does, even if nobody could tell it to.
        .stdin(Stdio::piped())
        .kill_on_drop(true);
    match &options.log {
        Some(log) => {
            let file = std::fs::File::options().create(true).append(true).open(log)?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        None => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    Ok(command.spawn()?)
}
