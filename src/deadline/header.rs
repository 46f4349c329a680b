//! The time that is left, from one service to the next: as the header `grpc-timeout`, and as one of plain milliseconds.
//!
//! What is sent is a length of time, since two machines do not agree on what time it is. The time that a request spends on
//! its way is in nobody's measure; take [an allowance](for_next_hop) off for it. Whatever is sent is rounded down, so the receiver
//! never has more time than the sender, and a chain of hops only ever has less.
//!
//! Nothing here needs an HTTP library: these are functions between text and [`Duration`].
//!
//! # Example
//!
//! A server that reads the header, works within it, and tells the service behind it what is left:
//!
//! ```
//! use std::time::Duration;
//! use mainstay::deadline::{self, header::{self, REQUEST_TIMEOUT_MS}};
//!
//! # struct Request { timeout: Option<&'static str> }
//! # impl Request { fn header(&self, _: &str) -> Option<&str> { self.timeout } }
//! # async fn ask_next(name: &str, value: String) -> Result<String, std::io::Error> { Ok(format!("{name}: {value}")) }
//! /// For those who say nothing, and the most that anybody gets.
//! const LONGEST: Duration = Duration::from_secs(10);
//! /// Less is no time to ask anybody: longer than what is behind here usually takes.
//! const SHORTEST: Duration = Duration::from_millis(50);
//!
//! async fn serve(request: Request) -> Result<String, Box<dyn std::error::Error>> {
//!     let given = match request.header(REQUEST_TIMEOUT_MS) {
//!         Some(text) => header::from_millis(text)?,           // 400 Bad Request
//!         None => LONGEST,
//!     };
//!     if given < SHORTEST {
//!         return Err("no time for that".into());              // 504 Gateway Timeout
//!     }
//!     deadline::within(deadline::after(given.min(LONGEST)), handle()).await
//! }
//!
//! async fn handle() -> Result<String, Box<dyn std::error::Error>> {
//!     // Every policy in here sees the deadline, this one ends the call at it.
//!     let next = mainstay::stack("next").deadline(LONGEST).build()?;
//!     let answer = next.call(|| async {
//!         let left = header::for_next_hop(Duration::from_millis(5)).unwrap_or(LONGEST);
//!         ask_next(REQUEST_TIMEOUT_MS, header::to_millis(left)).await
//!     });
//!     Ok(answer.await?)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let asked = serve(Request { timeout: Some("250") }).await.unwrap();
//! assert_eq!(asked, "x-request-timeout-ms: 245");
//! assert!(serve(Request { timeout: Some("soon") }).await.is_err());
//! assert!(serve(Request { timeout: Some("5") }).await.is_err());
//! # });
//! ```
//!
//! Both bounds are needed. The upper one is for clients that would wait for ever. The lower one is for everybody else: a call that a
//! deadline ends after it was started is a failure to the circuit breaker inside, whoever set the deadline, since a dependency that hangs must
//! open it. Without a floor a client who sends `5` some twenty times, which is as many calls as a breaker wants by default, can open
//! one that others share.
//!
//! In the tower form the limit comes from the request: `Deadline::per_request(|request| ..)` with the same functions and the same
//! bounds. A limit of zero is the answer at once: the call is refused before anything inside sees it.

use std::{error, fmt, time::Duration};

use super::remaining;

/// The header of gRPC, see its *PROTOCOL-HTTP2*: [`to_grpc`], [`from_grpc`].
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The header of plain HTTP, in milliseconds: [`to_millis`], [`from_millis`].
///
/// There is no standard for it; this name is in use, says its unit, and belongs to no product. Envoy has the same number in
/// `x-envoy-expected-rq-timeout-ms`, which the same functions read. That name is not used here, because an Envoy on the way sets it to
/// a limit of its own, which may be longer than what is left.
pub const REQUEST_TIMEOUT_MS: &str = "x-request-timeout-ms";

/// The units of gRPC in nanoseconds, the finest first.
const UNITS: [(char, u128); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60 * 1_000_000_000),
    ('H', 3_600 * 1_000_000_000),
];

/// The largest number of 8 digits.
const MOST: u128 = 99_999_999;

/// What is left until the [current](super::current) deadline less `allowance`, for the way to the next hop and back; zero when nothing
/// is left. `None` without a deadline. Reads the clock.
///
/// With nothing left, do not ask the next hop: what it does comes too late.
pub fn for_next_hop(allowance: Duration) -> Option<Duration> {
    remaining().map(|left| left.saturating_sub(allowance))
}

/// The value of [`GRPC_TIMEOUT`]: rounded down, in the finest unit in which it has at most 8 digits. Nothing left is `0n`, and more
/// than 99,999,999 hours is that.
pub fn to_grpc(left: Duration) -> String {
    let nanos = left.as_nanos();
    let (unit, length) = UNITS.into_iter().find(|(_, length)| nanos / length <= MOST).unwrap_or(UNITS[5]);
    format!("{}{unit}", (nanos / length).min(MOST))
}

/// What the value of [`GRPC_TIMEOUT`] says: 1 to 8 digits, and one of `H`, `M`, `S`, `m`, `u`, `n`.
///
/// # Errors
///
/// [`HeaderError`] for anything else.
pub fn from_grpc(value: &str) -> Result<Duration, HeaderError> {
    let wrong = || HeaderError::new(GRPC_TIMEOUT, value, "1 to 8 digits and one of H, M, S, m, u, n");
    let unit = value.chars().next_back().ok_or_else(wrong)?;
    let &(_, length) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let digits = &value[..value.len() - unit.len_utf8()];
    if digits.len() > 8 {
        return Err(wrong());
    }
    Ok(nanos(number(digits).ok_or_else(wrong)?.saturating_mul(length)))
}

/// The value of [`REQUEST_TIMEOUT_MS`]: whole milliseconds, rounded down.
pub fn to_millis(left: Duration) -> String {
    left.as_millis().to_string()
}

/// What the value of [`REQUEST_TIMEOUT_MS`] says: digits. A number beyond all bounds is the longest duration.
///
/// # Errors
///
/// [`HeaderError`] for anything else.
pub fn from_millis(value: &str) -> Result<Duration, HeaderError> {
    let millis = number(value).ok_or_else(|| HeaderError::new(REQUEST_TIMEOUT_MS, value, "digits"))?;
    Ok(nanos(millis.saturating_mul(1_000_000)))
}

/// One digit or more and nothing else, saturating.
fn number(digits: &str) -> Option<u128> {
    let add = |sum: u128, digit: u32| sum.saturating_mul(10).saturating_add(digit.into());
    let sum = digits.chars().try_fold(0, |sum, digit| Some(add(sum, digit.to_digit(10)?)))?;
    (!digits.is_empty()).then_some(sum)
}

fn nanos(count: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    match u64::try_from(count / SECOND) {
        Ok(seconds) => Duration::new(seconds, (count % SECOND) as u32),
        Err(_) => Duration::MAX,
    }
}

/// A header that does not say how much time is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderError {
    name: &'static str,
    value: String,
    expected: &'static str,
}

impl HeaderError {
    fn new(name: &'static str, value: &str, expected: &'static str) -> Self {
        // Of what somebody else has sent, as much as helps.
        HeaderError { name, value: value.chars().take(64).collect(), expected }
    }

    /// The header.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its value; the first 64 characters of a longer one.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} is not possible: allowed is {}", self.name, self.value, self.expected)
    }
}

impl error::Error for HeaderError {}

#[cfg(all(test, not(mainstay_loom)))]
mod tests;
