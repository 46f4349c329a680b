//! Some users and products to begin with.

use http::StatusCode;
use order_kit::BoxError;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::remote::Remote;

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The ids of users, by name.
    pub users: Vec<(String, String)>,
    /// The ids of products, by name.
    pub products: Vec<(String, String)>,
}

const USERS: [(&str, &str); 3] = [
    ("Alice Adams", "alice@example.com"),
    ("Bob Brown", "bob@example.com"),
    ("Carol Clark", "carol@example.com"),
];
const PRODUCTS: [(&str, &str, i64); 3] =
    [("Teapot", "24.90", 1_000), ("Cup", "0.10", 100_000), ("Tea", "6.50", 10_000)];

/// Makes what is not there yet. Each has its stock.
///
/// # Errors
///
/// That a service said no.
pub async fn seed(remote: &Remote) -> Result<Seed, BoxError> {
    let mut seed = Seed::default();
    for (name, email) in USERS {
        let answer = remote.post("users", "/users", json!({ "name": name, "email": email })).await?;
        if answer.status == StatusCode::CONFLICT {
            continue;
        }
        seed.users.push((name.to_owned(), id(&answer.expect(201)?.json())?));
    }
    if seed.users.len() < USERS.len() {
        // They are from an earlier start, and so are the products.
        return existing(remote).await;
    }
    for (name, price, stock) in PRODUCTS {
        let answer = remote.post("products", "/products", json!({ "name": name, "price": price })).await?;
        let product = id(&answer.expect(201)?.json())?;
        remote
            .put("inventory", &format!("/inventory/{product}"), json!({ "quantity": stock }))
            .await?
            .expect(200)?;
        seed.products.push((name.to_owned(), product));
    }
    Ok(seed)
}

impl Seed {
    /// Each user with a remote that shows his token: nobody orders for another one.
    ///
    /// # Errors
    ///
    /// That the gateway gives no token.
    pub async fn customers(&self, remote: &Remote) -> Result<Vec<(String, Remote)>, BoxError> {
        let customer = async |user: &str| Ok((user.to_owned(), remote.as_user(user).await?));
        futures::future::try_join_all(self.users.iter().map(|(_, user)| customer(user))).await
    }
}

async fn existing(remote: &Remote) -> Result<Seed, BoxError> {
    let named = async |service: &str| {
        let list = remote.get(service, &format!("/{service}?limit=100")).await?.expect(200)?.json();
        let items = list.as_array().cloned().unwrap_or_default();
        let pairs = items.iter().map(|it| Ok((it["name"].as_str().unwrap_or_default().to_owned(), id(it)?)));
        pairs.collect::<Result<Vec<_>, BoxError>>()
    };
    Ok(Seed { users: named("users").await?, products: named("products").await? })
}

fn id(value: &serde_json::Value) -> Result<String, BoxError> {
    value["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {value}").into())
}
