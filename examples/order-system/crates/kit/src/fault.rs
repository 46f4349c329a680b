//! Faults that can be switched on: what a person breaks to see what the others do about it.
//!
//! `PUT /_faults` with a [`Faults`] sets them, `GET /_faults` shows them and since when, `DELETE /_faults` ends them. They concern the
//! routes of the service and not those of the kit. A fault has an end: after ten minutes unless another time is given.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What is wrong with a service at the moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Faults {
    /// So many of a hundred requests are answered with 500 and have no effect.
    #[schema(maximum = 100)]
    pub fail_percent: u8,
    /// So many of a hundred requests have their effect and are answered with 500 all the same.
    #[schema(maximum = 100)]
    pub effect_then_fail_percent: u8,
    /// Every request waits that long before it is begun.
    pub latency_ms: u64,
    /// Requests are never answered, and have no effect.
    pub hang: bool,
    /// Requests have their effect, and are never answered.
    pub effect_then_hang: bool,
    /// Requests are answered with 429.
    pub reject: bool,
    /// When all this ends, in seconds from now; ten minutes if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing special.
    Pass,
    /// Answer 500 and do nothing.
    Fail,
    /// Do it, and answer 500.
    EffectThenFail,
    /// Answer 429.
    Reject,
    /// Never answer.
    Hang,
    /// Do it, and never answer.
    EffectThenHang,
}

/// The switch, shared by whoever sets and whoever obeys it.
#[derive(Debug, Clone, Default)]
pub struct Switch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    since: Option<i64>,
    ends: Option<Instant>,
    /// Of how many requests the share is counted, so that 30 % is 3 of 10 without chance.
    seen: u64,
}

impl Switch {
    /// Replaces what was set.
    pub fn set(&self, faults: Faults) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let time = Duration::from_secs(faults.for_seconds.unwrap_or(600).min(86_400));
        let any = faults != Faults { for_seconds: faults.for_seconds, ..Faults::default() };
        *state = State {
            since: any.then(crate::now_ms),
            ends: any.then(|| Instant::now() + time),
            faults,
            seen: 0,
        };
    }

    /// What is set, and since when in milliseconds of 1970.
    pub fn get(&self) -> (Faults, Option<i64>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire();
        (state.faults.clone(), state.since)
    }

    /// What to do with the next request, and how long to wait before.
    pub fn next(&self) -> (Verdict, Duration) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire();
        let faults = &state.faults;
        let wait = Duration::from_millis(faults.latency_ms);
        let seen = state.seen;
        let hits = |percent: u8| {
            (seen + 1) * u64::from(percent.min(100)) / 100 > seen * u64::from(percent.min(100)) / 100
        };
        let verdict = match faults {
            Faults { hang: true, .. } => Verdict::Hang,
            Faults { reject: true, .. } => Verdict::Reject,
            Faults { effect_then_hang: true, .. } => Verdict::EffectThenHang,
            _ if hits(faults.fail_percent) => Verdict::Fail,
            _ if hits(faults.effect_then_fail_percent) => Verdict::EffectThenFail,
            _ => Verdict::Pass,
        };
        state.seen += 1;
        (verdict, wait)
    }
}

impl State {
    fn expire(&mut self) {
        if self.ends.is_some_and(|at| at <= Instant::now()) {
            *self = State::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exact() {
        let switch = Switch::default();
        switch.set(Faults { fail_percent: 30, ..Faults::default() });
        let failed = (0..100).filter(|_| switch.next().0 == Verdict::Fail).count();
        assert_eq!(failed, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_ends() {
        let switch = Switch::default();
        switch.set(Faults { hang: true, for_seconds: Some(5), ..Faults::default() });
        assert_eq!(switch.next().0, Verdict::Hang);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((switch.next().0, switch.get().1), (Verdict::Pass, None));
    }
}
