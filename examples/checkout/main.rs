//! A shop under fire.
//!
//! A checkout service calls a user service and a payment service over real HTTP, each call protected by a
//! mainstay stack. Customers order at a fixed rate, and payment fails, hangs and slows down. Watch what the
//! customers notice.

mod checks;
mod load;
mod plot;
mod policies;
mod services;
mod shop;
mod story;
mod tape;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{interval, sleep, sleep_until};

use crate::checks::LeftOver;
use crate::load::Customers;
use crate::policies::Policies;
use crate::services::{Payment, Server};
use crate::shop::{PaymentClient, Shop};
use crate::story::Phase;
use crate::tape::{Listener, Tape};
use crate::view::View;

type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
cargo run --example checkout -- [options]

  --seconds N      how long the story takes (30; at least 12)
  --fast           the shortest story: --seconds 12
  --rate N         orders per second (200)
  --plot FILE.svg  draw the story
  --unprotected    the same story without mainstay, for comparison
";

struct Options {
    seconds: f64,
    rate: f64,
    plot: Option<PathBuf>,
    unprotected: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprint!("checkout: {problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            eprintln!("\ncheckout: {broken} of the promises above did not hold");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("checkout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the story. The number of promises that were broken.
async fn run(options: &Options) -> Result<usize, Error> {
    let story = story::of(options.seconds);
    let end = story.last().expect("the story has phases").until;
    let tape = Arc::new(Tape::default());

    // Three servers, each on a port of its own, and the customers.
    let payment = Payment::new(tape.clone());
    let payment_server = Server::start(payment.router()).await?;
    let user_server = Server::start(services::user(tape.clone())).await?;
    let users = Policies::new("users", Listener { tape: tape.clone(), leg: |events| &mut events.users })?;
    let payments =
        Policies::new("payments", Listener { tape: tape.clone(), leg: |events| &mut events.payments })?;
    let shop = Shop {
        users: policies::users(&users, shop::http(), options.unprotected)?,
        users_at: user_server.address,
        payments: policies::payments(&payments, options.unprotected)?,
        payment: PaymentClient { http: shop::http(), address: payment_server.address },
        tape: tape.clone(),
    };
    let shop_server = Server::start(shop.router()).await?;
    let customers = Customers { http: shop::http(), shop: shop_server.address, tape: tape.clone() };
    customers.warm_up().await;
    tape.start();

    // The story, and those who watch it.
    let control = std::thread::spawn({
        let (tape, rate) = (tape.clone(), options.rate);
        move || load::control(&tape, end, rate)
    });
    let telling = tokio::spawn(tell(story.clone(), payment.clone(), tape.clone()));
    let sampling = tokio::spawn(sample(users.clone(), payments.clone(), tape.clone()));
    let viewing = tokio::spawn(view(story.clone(), tape.clone()));

    let orders = customers.order_until(end, options.rate).await;

    // The end: everything must be given back.
    telling.await?;
    for task in [sampling, viewing] {
        task.abort();
        drop(task.await);
    }
    control.join().expect("the control does not panic")?;
    drop(customers);
    let permits = users.gauges().in_use + payments.gauges().in_use;
    shop_server.shut_down().await;
    let requests = settle(|| payment.running()).await;
    user_server.shut_down().await;
    payment_server.shut_down().await;
    let tasks = settle(|| Handle::current().metrics().num_alive_tasks()).await;
    let left = LeftOver { orders, permits, requests, tasks };

    let events = tape.take();
    let verdicts = checks::judge(&story, &events, &left);
    View::new().summary(&story, &events, &verdicts);
    if let Some(file) = &options.plot {
        plot::draw(file, &story, &events, options)?;
        println!("\n drawn: {}", file.display());
    }
    let broken = verdicts.iter().filter(|verdict| !verdict.kept).count();
    if let (1.., Some(worst)) = (broken, checks::starved(&story, &events)) {
        let worst = checks::ms(Some(worst));
        eprintln!("\ncheckout: this machine is too busy to judge by: a call that does nothing took {worst}");
    }
    Ok(broken)
}

/// Turns the switch of the payment service when the story says so.
async fn tell(story: Vec<Phase>, payment: Arc<Payment>, tape: Arc<Tape>) {
    for phase in story {
        sleep_until(tape.instant(phase.from)).await;
        payment.set(phase.fault);
    }
}

/// Notes how the policies stand.
async fn sample(users: Policies, payments: Policies, tape: Arc<Tape>) {
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        tape.note(|events, at| {
            events.users.gauges.push((at, users.gauges()));
            events.payments.gauges.push((at, payments.gauges()));
        });
    }
}

async fn view(story: Vec<Phase>, tape: Arc<Tape>) {
    let mut view = View::new();
    for frame in 1.. {
        sleep_until(tape.instant(frame * view.interval())).await;
        view.show(&story, &tape.events(), tape.now());
    }
}

/// What is left of something that should come to nothing, after waiting a second for it.
async fn settle(count: impl Fn() -> usize) -> usize {
    for _ in 0..100 {
        if count() == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    count()
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self { seconds: 30.0, rate: 200.0, plot: None, unprotected: false };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: String| text.parse::<f64>().map_err(|_| format!("{text:?} is not a number"));
            match arg.as_str() {
                "--seconds" => options.seconds = number(value()?)?,
                "--fast" => options.seconds = story::SHORTEST,
                "--rate" => options.rate = number(value()?)?,
                "--plot" => options.plot = Some(value()?.into()),
                "--unprotected" => options.unprotected = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("there is no option {arg}")),
            }
        }
        if !(story::SHORTEST..=3600.0).contains(&options.seconds) {
            return Err(format!("--seconds must be within {}..=3600", story::SHORTEST));
        }
        if !(50.0..=2000.0).contains(&options.rate) {
            return Err("--rate must be within 50..=2000".into());
        }
        Ok(Some(options))
    }
}
