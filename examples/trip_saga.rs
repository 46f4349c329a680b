//! A flight, a hotel and a car at once; when one of them cannot be had, the others are cancelled: `cargo run --example trip_saga`

use mainstay::saga::{Failure, Orchestrator, Outcome, Saga, Step, memory::Memory, view::Timeline};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Trip {
    to: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Each step with what undoes it. None is behind another, so all three run at once.
    let mut trip = Saga::define::<Trip>("trip", 1);
    let flight = trip.step("flight", (), book).compensate(cancel);
    let hotel = trip.step("hotel", (), book).compensate(cancel);
    let car = trip.step("car", (), book).compensate(cancel);
    let trip = trip.build((flight, hotel, car))?;

    let trips = Orchestrator::open(Memory::new()).register(&trip).start().await?;
    for (id, to) in [("trip-1", "Oslo"), ("trip-2", "Venice")] {
        println!("{id}, to {to}:");
        match trips.run(&trip, id, &Trip { to: to.to_owned() }).await? {
            Outcome::Completed((flight, hotel, car)) => println!("all booked: {flight}, {hotel}, {car}"),
            Outcome::Compensated(why) => println!("nothing booked: {why}"),
            held => println!("needs a person: {held:?}"),
        }
        if let Some(stored) = trips.load(id).await? {
            println!("{}", Timeline::of(&stored));
        }
    }
    Ok(())
}

/// An action: whoever it calls is told the key, which is the same at every attempt, so that a repetition is recognised.
async fn book(step: Step<Trip>, (): ()) -> Result<String, Failure> {
    let (what, to) = (step.key().step(), &step.input().to);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    if what == "car" && to == "Venice" {
        // Said with these words: nothing has happened. Any other error means that nobody knows.
        return Err(Failure::rejected("there are no roads"));
    }
    println!("  {what} booked under {}", step.key());
    Ok(format!("{what} to {to}"))
}

/// A compensation: it is given the booking if that is known, and its own key.
async fn cancel(step: Step<Trip>, (): (), booking: Option<String>) -> Result<(), Failure> {
    println!("  {} cancelled under {}", booking.as_deref().unwrap_or("what may be booked"), step.key());
    Ok(())
}
