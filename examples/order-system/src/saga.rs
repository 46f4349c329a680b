//! `saga`: the sagas of orders, asked of order-service. When it does not run, `mainstay-saga` works on its store.

use clap::Subcommand;
use order_kit::BoxError;
use serde_json::json;

use crate::remote::Remote;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Those that wait for a person.
    List,
    /// Everything that has happened to an order.
    Show {
        /// The order.
        id: String,
    },
    /// Lets one that waits for a person go on.
    Retry {
        /// The order.
        id: String,
    },
}

/// Does it.
///
/// # Errors
///
/// What order-service says.
pub async fn run(what: &What, remote: &Remote) -> Result<(), BoxError> {
    match what {
        What::List => {
            let list = remote.get("orders", "/orders/attention").await?.expect(200)?.json();
            let sagas = list.as_array().cloned().unwrap_or_default();
            for saga in &sagas {
                println!("{}  {}  {}", text(&saga["id"]), text(&saga["phase"]), text(&saga["note"]));
            }
            println!("{} wait for a person", sagas.len());
        }
        What::Show { id } => {
            let timeline = remote.get("orders", &format!("/orders/{id}/timeline")).await?.expect(200)?.json();
            let steps = timeline["steps"].as_array().or(timeline.as_array()).cloned().unwrap_or_default();
            println!("{:<16} {:<6} {:>7} {:<14} {:>8}  process", "step", "way", "attempt", "outcome", "ms");
            for step in steps {
                println!(
                    "{:<16} {:<6} {:>7} {:<14} {:>8}  {}",
                    text(&step["step"]),
                    text(&step["direction"]),
                    text(&step["attempt"]),
                    text(&step["outcome"]),
                    text(&step["ms"]),
                    text(&step["process"])
                );
            }
        }
        What::Retry { id } => {
            let answer = remote.post("orders", &format!("/orders/{id}/retry"), json!({})).await?;
            println!("{} {}", answer.status, answer.text);
        }
    }
    Ok(())
}

fn text(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { "-".to_owned() } else { value.to_string() }, str::to_owned)
}
