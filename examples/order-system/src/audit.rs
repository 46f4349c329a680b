//! `audit`: whether money, goods and orders agree, asked of each service.

use std::{collections::BTreeMap, time::Duration};

use order_kit::{BoxError, Cents};
use serde::{Deserialize, de::DeserializeOwned};

use crate::remote::Remote;

const PAGE: usize = 1_000;
const SHOWN: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    id: String,
    status: String,
    total: Cents,
    items: Vec<Item>,
    /// Whether nothing more happens to it.
    over: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    product_id: String,
    quantity: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Paid {
    order_id: String,
    charged: Cents,
    refunded: Cents,
    charges: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reserved {
    order_id: String,
    state: String,
    items: Vec<Item>,
}

/// A page of somebody's books. Their own verdict is only in the first that is asked for.
#[derive(Debug, Deserialize)]
struct Page<T> {
    #[serde(default = "yes")]
    ok: bool,
    orders: Vec<T>,
    next: Option<String>,
}

fn yes() -> bool {
    true
}

/// What was found.
#[derive(Debug, Default)]
pub struct Audited {
    /// How many orders there are.
    pub orders: u64,
    /// How many are not over.
    pub open: u64,
    /// How many are confirmed.
    pub confirmed: u64,
    /// How many are cancelled.
    pub cancelled: u64,
    charged: Cents,
    refunded: Cents,
    sold: Cents,
    wrong: Vec<String>,
}

/// Asks orders, payments and the inventory for their books, and compares them order by order. What is on its way is not wrong, but open.
///
/// # Errors
///
/// That one of them cannot be asked.
pub async fn audit(remote: &Remote) -> Result<Audited, BoxError> {
    // Orders first: what begins while the others are asked is not in it, and whose it is is asked only of orders that are over.
    let (_, orders) = books::<Order>(remote, "orders").await?;
    let (payments_ok, paid) = books::<Paid>(remote, "payments").await?;
    let (inventory_ok, reserved) = books::<Reserved>(remote, "inventory").await?;
    let mut paid: BTreeMap<String, Paid> = paid.into_iter().map(|it| (it.order_id.clone(), it)).collect();
    let mut reserved: BTreeMap<String, Reserved> =
        reserved.into_iter().map(|it| (it.order_id.clone(), it)).collect();
    let mut audited = Audited::default();
    let quiet = orders.iter().all(|order| order.over);
    for order in orders {
        audited.orders += 1;
        let (paid, reserved) = (paid.remove(&order.id), reserved.remove(&order.id));
        audited.charged =
            audited.charged.plus(paid.as_ref().map_or(Cents(0), |it| it.charged)).unwrap_or_default();
        audited.refunded =
            audited.refunded.plus(paid.as_ref().map_or(Cents(0), |it| it.refunded)).unwrap_or_default();
        if paid.as_ref().is_some_and(|it| it.charges > 1) {
            audited.wrong.push(format!("order {} was charged twice", order.id));
        }
        if !order.over {
            audited.open += 1;
            continue;
        }
        match order.status.as_str() {
            "confirmed" => audited.confirmed(&order, paid.as_ref(), reserved.as_ref()),
            "cancelled" => audited.cancelled(&order, paid.as_ref(), reserved.as_ref()),
            other => audited.wrong.push(format!("order {} is over and {other}", order.id)),
        }
    }
    // Only when nothing is on its way can there be none that orders does not know.
    if quiet {
        audited.wrong.extend(
            paid.into_keys().map(|order| format!("money was moved for order {order}, which nobody placed")),
        );
        audited.wrong.extend(
            reserved
                .into_keys()
                .map(|order| format!("goods were held for order {order}, which nobody placed")),
        );
        if !payments_ok {
            audited.wrong.push("the books of payments are wrong in themselves".to_owned());
        }
    }
    if !inventory_ok {
        audited.wrong.push("the books of the inventory are wrong in themselves".to_owned());
    }
    Ok(audited)
}

/// The same, when nothing is open any more, or the time is over.
///
/// # Errors
///
/// As of [`audit`], at the end of the time.
pub async fn settled(remote: &Remote, time: Duration) -> Result<Audited, BoxError> {
    // The whole of the books is looked at once, however many they are: until then only what was open the last time.
    let _ = tokio::time::timeout(time, all_over(remote)).await;
    audit(remote).await
}

/// Returns when each order is over.
async fn all_over(remote: &Remote) {
    let mut after = String::new();
    loop {
        match page::<Order>(remote, "orders", &after).await {
            Ok(Page { orders, next, .. }) => match (orders.iter().position(|order| !order.over), next) {
                (None, None) => return,
                (None, Some(next)) => {
                    after = next;
                    continue;
                }
                (Some(open), _) => {
                    if let Some(last) = open.checked_sub(1) {
                        after.clone_from(&orders[last].id);
                    }
                }
            },
            // A process that was killed may not be back yet.
            Err(error) => tracing::debug!(%error, "orders cannot be asked for its books"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All pages, and whether the service finds its own books right.
async fn books<T: DeserializeOwned>(remote: &Remote, service: &str) -> Result<(bool, Vec<T>), BoxError> {
    let (mut all, mut after, mut ok) = (Vec::new(), String::new(), true);
    loop {
        let page = page(remote, service, &after).await?;
        ok &= page.ok;
        all.extend(page.orders);
        match page.next {
            Some(next) => after = next,
            None => return Ok((ok, all)),
        }
    }
}

async fn page<T: DeserializeOwned>(remote: &Remote, service: &str, after: &str) -> Result<Page<T>, BoxError> {
    let path = format!("/_audit?of={service}&limit={PAGE}&after={after}");
    remote.get(service, &path).await?.expect(200)?.read()
}

impl Audited {
    fn confirmed(&mut self, order: &Order, paid: Option<&Paid>, reserved: Option<&Reserved>) {
        self.confirmed += 1;
        self.sold = self.sold.plus(order.total).unwrap_or_default();
        let (charged, refunded) = paid.map_or((Cents(0), Cents(0)), |it| (it.charged, it.refunded));
        if (charged, refunded) != (order.total, Cents(0)) {
            self.wrong.push(format!(
                "order {} is confirmed at {}, was charged {charged} and refunded {refunded}",
                order.id, order.total
            ));
        }
        let taken = reserved.map(|it| (it.state.as_str(), sorted(&it.items)));
        if taken != Some(("committed", sorted(&order.items))) {
            self.wrong.push(format!("order {} is confirmed, and its goods are {taken:?}", order.id));
        }
    }

    fn cancelled(&mut self, order: &Order, paid: Option<&Paid>, reserved: Option<&Reserved>) {
        self.cancelled += 1;
        if let Some(paid) = paid.filter(|it| it.charged != it.refunded) {
            self.wrong.push(format!(
                "order {} is cancelled, was charged {} and refunded {}",
                order.id, paid.charged, paid.refunded
            ));
        }
        if let Some(reserved) = reserved.filter(|it| !["released", "refused"].contains(&it.state.as_str())) {
            self.wrong.push(format!("order {} is cancelled, and its goods are {}", order.id, reserved.state));
        }
    }

    /// Whether nothing is wrong, and nothing open.
    pub fn green(&self) -> bool {
        self.wrong.is_empty() && self.open == 0 && self.balanced()
    }

    /// Sums say something once no order is on its way.
    fn balanced(&self) -> bool {
        self.open > 0 || self.charged.0 - self.refunded.0 == self.sold.0
    }

    /// What was found, in lines.
    pub fn lines(&self) -> Vec<String> {
        let Audited { orders, open, confirmed, cancelled, charged, refunded, sold, wrong } = self;
        let mut lines = vec![
            format!("audit: {orders} orders: {confirmed} confirmed, {cancelled} cancelled, {open} open"),
            format!("audit: charged {charged} - refunded {refunded} = sold {sold}"),
        ];
        lines.extend(wrong.iter().take(SHOWN).map(|line| format!("audit: WRONG: {line}")));
        if wrong.len() > SHOWN {
            lines.push(format!("audit: and {} more", wrong.len() - SHOWN));
        }
        if !self.balanced() {
            lines.push("audit: WRONG: the sums do not balance".to_owned());
        }
        lines
    }

    /// Prints them; whether it is [`green`](Audited::green).
    pub fn print(&self) -> bool {
        for line in self.lines() {
            println!("{line}");
        }
        self.green()
    }
}

/// By product, with what is of one product together: an order may name it twice.
fn sorted(items: &[Item]) -> BTreeMap<&str, i64> {
    let mut sums = BTreeMap::new();
    for item in items {
        *sums.entry(item.product_id.as_str()).or_default() += item.quantity;
    }
    sums
}
