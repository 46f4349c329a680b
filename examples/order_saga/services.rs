//! The participants: orders, stock and payments, each with a database of its own, as other teams would run them.
//!
//! What an orchestrator can do to a service, it does to these: the same request twice, an undo of what never came, a request
//! that arrives after its undo. The barrier in front of each change, in the same transaction, is what they have against it.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::{
    saga::{
        Failure, Key, Step, Verified,
        barrier::{
            Action,
            sqlite::{action_or_rejection, compensation, install, lookup},
        },
    },
    testing::{Said, What},
};
use rusqlite::{Connection, Transaction, TransactionBehavior::Immediate, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Error,
    calls::{Calls, Request},
};

/// What a customer orders, and so the input of a saga.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Purchase {
    pub customer: String,
    pub item: String,
    pub quantity: i64,
    pub cents: i64,
    pub card: String,
}

/// All of them.
#[derive(Debug)]
pub struct Shop {
    pub orders: Orders,
    pub stock: Stock,
    pub payments: Payments,
}

impl Shop {
    /// Opens the databases. The shop lives as long as the program, so that steps can simply refer to it.
    pub fn open(data: &Path, wrong_keys: bool) -> Result<&'static Shop, Error> {
        let orders = Database::connect(
            &data.join("orders.db"),
            "create table if not exists purchase (id text primary key, state text not null, item text not null,
                 quantity integer not null, cents integer not null) strict;
             create table if not exists receipt (purchase text not null, text text not null) strict;
             create index if not exists receipt_of on receipt (purchase);",
        )?;
        let stock = Database::connect(
            &data.join("stock.db"),
            "create table if not exists item (name text primary key, delivered integer not null,
                 free integer not null) strict;
             insert or ignore into item values ('lamp', 1000000, 1000000), ('chair', 200, 200), ('vase', 10, 10);",
        )?;
        // A ledger without unique keys, so that a second charge would be seen.
        let payments = Database::connect(
            &data.join("payments.db"),
            "create table if not exists entry (receipt integer primary key, purchase text not null,
                 cents integer not null) strict;",
        )?;
        let calls = Calls::open(data)?;
        let [orders, stock, payments] = [orders, stock, payments].map(|connection| Database {
            connection,
            calls: calls.clone(),
            wrong_keys,
        });
        Ok(Box::leak(Box::new(Shop {
            orders: Orders(orders),
            stock: Stock { database: stock, scanner_is_broken: AtomicBool::new(false) },
            payments: Payments(payments),
        })))
    }
}

type Order = Step<Purchase>;

#[derive(Debug)]
pub struct Orders(Database);

impl Orders {
    pub async fn create(&self, order: Order) -> Result<(), Failure> {
        let (id, purchase) = (order.saga().to_string(), order.input().clone());
        let create = move |tx: &Transaction<'_>| {
            let Purchase { item, quantity, cents, .. } = purchase;
            tx.execute(
                "insert into purchase values (?1, 'open', ?2, ?3, ?4)",
                params![id, item, quantity, cents],
            )?;
            Ok(Ok(()))
        };
        self.0.perform(&order, create).await.map(|_| ())
    }

    pub async fn cancel(&self, order: Order) -> Result<(), Failure> {
        let id = order.saga().to_string();
        let cancel = move |tx: &Transaction<'_>, (): ()| {
            tx.execute("update purchase set state = 'cancelled' where id = ?1", [id]).map(drop)
        };
        self.0.undo(&order, cancel).await
    }

    pub async fn confirm(&self, order: Order) -> Result<(), Failure> {
        let (id, blocked) = (order.saga().to_string(), order.input().customer == "mallory");
        let confirm = move |tx: &Transaction<'_>| {
            if blocked {
                return Ok(Err("the customer is blocked".to_owned()));
            }
            tx.execute("update purchase set state = 'confirmed' where id = ?1", [id])?;
            Ok(Ok(()))
        };
        self.0.perform(&order, confirm).await.map(|_| ())
    }

    pub async fn is_confirmed(&self, order: Order) -> Result<Verified<()>, Failure> {
        self.0.look(&order).await
    }

    pub async fn send_receipt(&self, order: Order, receipt: i64) -> Result<(), Failure> {
        let id = order.saga().to_string();
        let send = move |tx: &Transaction<'_>| {
            tx.execute("insert into receipt values (?1, ?2)", params![id, format!("receipt {receipt}")])?;
            Ok(Ok(()))
        };
        self.0.perform(&order, send).await.map(|_| ())
    }
}

#[derive(Debug)]
pub struct Stock {
    database: Database,
    /// Nothing can be taken back while it is.
    pub scanner_is_broken: AtomicBool,
}

impl Stock {
    pub async fn reserve(&self, order: Order) -> Result<i64, Failure> {
        let Purchase { item, quantity, .. } = order.input().clone();
        let reserve = move |tx: &Transaction<'_>| {
            let taken = tx.execute(
                "update item set free = free - ?2 where name = ?1 and free >= ?2",
                params![item, quantity],
            )?;
            Ok(if taken == 1 { Ok(quantity) } else { Err(format!("no {item} left")) })
        };
        self.database.perform(&order, reserve).await.map(|(quantity, _)| quantity)
    }

    pub async fn release(&self, order: Order) -> Result<(), Failure> {
        if order.input().item == "vase" && self.scanner_is_broken.load(Relaxed) {
            return Err(Failure::unknown("the scanner does not answer"));
        }
        let item = order.input().item.clone();
        let release = move |tx: &Transaction<'_>, quantity: i64| {
            tx.execute("update item set free = free + ?2 where name = ?1", params![item, quantity]).map(drop)
        };
        self.database.undo(&order, release).await
    }
}

#[derive(Debug)]
pub struct Payments(Database);

impl Payments {
    /// How long the service takes when it is slow: longer than anybody waits.
    const SLOW: Duration = Duration::from_secs(60);

    pub async fn charge(&self, order: Order) -> Result<i64, Failure> {
        let (id, Purchase { card, cents, .. }) = (order.saga().to_string(), order.input().clone());
        let (declined, slow) = (card == "empty", card == "slow");
        let charge = move |tx: &Transaction<'_>| {
            if declined {
                return Ok(Err("the card was declined".to_owned()));
            }
            tx.execute("insert into entry (purchase, cents) values (?1, ?2)", params![id, cents])?;
            Ok(Ok(tx.last_insert_rowid()))
        };
        let (receipt, repeated) = self.0.perform(&order, charge).await?;
        if slow && !repeated {
            // The money has moved, and nobody hears of it.
            tokio::time::sleep(Self::SLOW).await;
        }
        Ok(receipt)
    }

    pub async fn refund(&self, order: Order) -> Result<(), Failure> {
        let (id, cents) = (order.saga().to_string(), order.input().cents);
        let refund = move |tx: &Transaction<'_>, _receipt: i64| {
            tx.execute("insert into entry (purchase, cents) values (?1, ?2)", params![id, -cents]).map(drop)
        };
        self.0.undo(&order, refund).await
    }
}

/// A service's database, with the barrier in it.
#[derive(Debug)]
struct Database {
    connection: Arc<Mutex<Connection>>,
    calls: Calls,
    wrong_keys: bool,
}

impl Database {
    fn connect(path: &Path, schema: &str) -> Result<Arc<Mutex<Connection>>, Error> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch("pragma journal_mode = wal; pragma synchronous = full")?;
        install(&connection)?;
        connection.execute_batch(schema)?;
        Ok(Arc::new(Mutex::new(connection)))
    }

    /// An action: its answer, and whether it was given before.
    async fn perform<T, F>(&self, order: &Order, business: F) -> Result<(T, bool), Failure>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, String>> + Send + 'static,
    {
        let mut key = order.key().clone();
        if self.wrong_keys && order.attempt() > 1 {
            // The mistake: a repetition that nobody can recognise as one.
            key = Key::new(key.saga(), &format!("{}, attempt {}", key.step(), order.attempt()), key.phase())?;
        }
        let request = Request { key: key.clone(), ..request(What::Act, order) };
        self.on_a_thread(request, said, move |connection| {
            let tx = connection.transaction_with_behavior(Immediate)?;
            let answer = action_or_rejection(&tx, &key, business)?;
            tx.commit()?;
            match answer {
                Action::Done(Ok(answer)) => Ok((answer, false)),
                Action::Repeated(Ok(answer)) => Ok((answer, true)),
                Action::Done(Err(why)) | Action::Repeated(Err(why)) => Err(Failure::rejected(why)),
                Action::Refused => Err(Failure::rejected("it was undone before it came")),
            }
        })
        .await
    }

    async fn undo<T, F>(&self, order: &Order, business: F) -> Result<(), Failure>
    where
        T: DeserializeOwned + 'static,
        F: FnOnce(&Transaction<'_>, T) -> rusqlite::Result<()> + Send + 'static,
    {
        let key = order.key().clone();
        self.on_a_thread(request(What::Undo, order), said, move |connection| {
            let tx = connection.transaction_with_behavior(Immediate)?;
            let _undone_before_or_now = compensation(&tx, &key, business)?;
            Ok(tx.commit()?)
        })
        .await
    }

    /// Whether an action has happened.
    async fn look<T>(&self, order: &Order) -> Result<Verified<T>, Failure>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let key = order.key().clone();
        let said = |answer: &Result<Verified<T>, Failure>| match answer {
            Ok(Verified::Applied(_)) => Said::Done,
            Ok(Verified::Rejected(_)) => Said::Nothing,
            _ => Said::Unknown,
        };
        // If the request arrives yet, the barrier makes one of it and the one that is sent again.
        self.on_a_thread(request(What::Verify, order), said, move |connection| {
            Ok(lookup(connection, &key)?.into_verified())
        })
        .await
    }

    /// SQLite blocks, and what it does goes on when nobody waits for it any more: like a service at the end of a wire.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        request: Request,
        said: fn(&Result<T, Failure>) -> Said,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (connection, calls) = (self.connection.clone(), self.calls.clone());
        tokio::task::spawn_blocking(move || {
            let call = calls.asked(&request)?;
            let answer = work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner));
            calls.answered(call, said(&answer))?;
            answer
        })
        .await?
    }
}

fn request(what: What, order: &Order) -> Request {
    let key = order.key().clone();
    Request { what, step: key.step().to_owned(), key, epoch: order.epoch() }
}

fn said<T>(answer: &Result<T, Failure>) -> Said {
    match answer {
        Ok(_) => Said::Done,
        Err(failure) if failure.is_clean() => Said::Nothing,
        Err(_) => Said::Unknown,
    }
}
