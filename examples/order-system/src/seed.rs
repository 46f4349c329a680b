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

/// Makes what is not there yet, each for itself: an earlier start may have died in between. Each product has its stock.
///
/// # Errors
///
/// That a service said no.
pub async fn seed(remote: &Remote) -> Result<Seed, BoxError> {
    let mut seed = Seed::default();
    for (name, email) in USERS {
        let user = match newest(remote, &format!("/users?email={email}")).await? {
            Some(user) => user,
            None => {
                let new = json!({ "name": name, "email": email });
                remote.post("users", "/users", new).await?.expect(201)?.json()
            }
        };
        seed.users.push((name.to_owned(), id(&user)?));
    }
    for (name, price, stock) in PRODUCTS {
        let product = match newest(remote, &format!("/products?name={name}")).await? {
            Some(product) => product,
            None => {
                let new = json!({ "name": name, "price": price });
                remote.post("products", "/products", new).await?.expect(201)?.json()
            }
        };
        let product = id(&product)?;
        let path = format!("/inventory/{product}");
        if remote.get("inventory", &path).await?.status == StatusCode::NOT_FOUND {
            remote.put("inventory", &path, json!({ "quantity": stock })).await?.expect(200)?;
        }
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

/// The first that is listed.
async fn newest(remote: &Remote, path: &str) -> Result<Option<serde_json::Value>, BoxError> {
    let service = path.trim_start_matches('/').split('?').next().unwrap_or_default();
    let list = remote.get(service, path).await?.expect(200)?.json();
    Ok(list.get(0).cloned())
}

fn id(value: &serde_json::Value) -> Result<String, BoxError> {
    value["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {value}").into())
}
