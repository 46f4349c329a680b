//! How many permits a bulkhead needs.
//!
//! *Little's law*: calls that arrive at `rate` per second and take `latency` on average keep
//!
//! ```text
//! a = rate × latency
//! ```
//!
//! permits in use on average, whatever the distributions. That is the load *offered*; a limit of `a` would refuse about
//! half of the traffic's fluctuations.
//!
//! *Erlang's formula B*: of calls that arrive independently of each other (Poisson) and find `n` permits and no
//! queue, the fraction
//!
//! ```text
//!               aⁿ / n!
//! B(n, a) = ---------------    computed as   B(0, a) = 1,  B(n, a) = a·B(n-1, a) / (n + a·B(n-1, a))
//!           Σ(k=0..n) aᵏ/k!
//! ```
//!
//! is refused, again whatever the distribution of the latency. To refuse one call in a thousand:
//!
//! | offered load | 1 | 5 | 10 | 50 | 100 |
//! |---|---|---|---|---|---|
//! | permits | 6 | 14 | 21 | 71 | 128 |

use std::time::Duration;

use crate::error::ConfigError;

/// The largest offered load that [`for_blocking`] works with; the work grows with it.
const MOST: f64 = 1e6;

/// The average number of calls in progress: `rate_per_s` × `latency`.
pub fn little(rate_per_s: f64, latency: Duration) -> f64 {
    rate_per_s * latency.as_secs_f64()
}

/// The fraction of calls that find all `servers` busy, at the load `offered_load`; see the [module](self).
///
/// NaN for a load that is negative or not a number.
pub fn erlang_b(offered_load: f64, servers: usize) -> f64 {
    if offered_load.is_nan() || offered_load < 0.0 {
        return f64::NAN;
    }
    if offered_load.is_infinite() {
        return 1.0;
    }
    let mut blocking = 1.0;
    for n in 1..=servers {
        blocking = step(offered_load, n, blocking);
        if blocking == 0.0 {
            break;
        }
    }
    blocking
}

/// The smallest number of servers that refuses no more than the fraction `probability` of the calls.
///
/// # Errors
///
/// [`ConfigError::Setting`] for a load outside 0 to a million, and for a probability that is not above 0 and at most 1.
pub fn for_blocking(offered_load: f64, probability: f64) -> Result<usize, ConfigError> {
    ConfigError::unless(
        (0.0..=MOST).contains(&offered_load),
        "sizing.offered_load",
        offered_load,
        "a number from 0 to 1000000",
    )?;
    ConfigError::unless(
        probability > 0.0 && probability <= 1.0,
        "sizing.probability",
        probability,
        "above 0, up to 1",
    )?;
    let mut servers = 0;
    let mut blocking = 1.0;
    while blocking > probability {
        servers += 1;
        blocking = step(offered_load, servers, blocking);
    }
    Ok(servers)
}

fn step(offered_load: f64, n: usize, before: f64) -> f64 {
    let busy = offered_load * before;
    busy / (n as f64 + busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_in_a_thousand_needs_the_servers_of_the_table() {
        for (load, servers) in [(1.0, 6), (5.0, 14), (10.0, 21), (50.0, 71), (100.0, 128)] {
            assert_eq!(for_blocking(load, 0.001), Ok(servers), "at the load {load}");
            assert!(erlang_b(load, servers) <= 0.001);
            assert!(erlang_b(load, servers - 1) > 0.001, "one fewer would do");
        }
    }

    #[test]
    fn the_recursion_agrees_with_the_formula_as_it_is_written() {
        for load in [0.1, 1.0, 3.5, 20.0] {
            for servers in 0..40_usize {
                let mut term = 1.0;
                let mut sum = 1.0;
                for k in 1..=servers {
                    term *= load / k as f64;
                    sum += term;
                }
                let written = term / sum;
                let computed = erlang_b(load, servers);
                assert!((written - computed).abs() < 1e-12, "{load} on {servers}: {written} {computed}");
            }
        }
    }

    #[test]
    fn little_is_rate_times_latency() {
        assert_eq!(little(200.0, Duration::from_millis(50)), 10.0);
    }

    #[test]
    fn loads_and_probabilities_without_meaning_are_refused() {
        for load in [-1.0, f64::NAN, f64::INFINITY, 2e6] {
            assert!(for_blocking(load, 0.001).is_err(), "load {load}");
        }
        for probability in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(for_blocking(10.0, probability).is_err(), "probability {probability}");
        }
        assert_eq!(for_blocking(0.0, 0.001), Ok(1));
        assert!(erlang_b(-1.0, 3).is_nan() && erlang_b(f64::NAN, 3).is_nan());
        assert_eq!(erlang_b(f64::INFINITY, 3), 1.0);
    }
}
