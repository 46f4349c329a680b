//! Faults that can be switched on: what a person breaks to see what the others do about it.
//!
//! `PUT /_faults` with a [`Faults`] sets them, `GET /_faults` shows them and since when, `DELETE /_faults` ends them. They concern the
//! routes of the service and not those of the kit; [`hold_at`](Faults::hold_at) concerns the steps of its sagas. A fault has an end: after
//! ten minutes unless another time is given.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mainstay::saga::Key;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

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
    /// Where sagas stand still: `before charge-card.do`, `after charge-card.undo`. At each place the first that comes, until the place is
    /// no longer named; whoever comes meanwhile passes. For who wants to kill the process just there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hold_at: Vec<String>,
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
pub struct Switch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Told whenever something was set.
    changed: watch::Sender<()>,
    /// Who stands still, by the place.
    held: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    since: Option<i64>,
    ends: Option<Instant>,
    /// Of how many requests the share is counted, so that 30 % is 3 of 10 without chance.
    seen: u64,
}

/// Who stands still, as long as this is there.
struct Held<'a>(&'a Inner, &'a str);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).remove(self.1);
    }
}

impl Switch {
    /// Replaces what was set.
    pub fn set(&self, faults: Faults) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let time = Duration::from_secs(faults.for_seconds.unwrap_or(600).min(86_400));
        let any = faults != Faults { for_seconds: faults.for_seconds, ..Faults::default() };
        *state = State {
            since: any.then(crate::now_ms),
            ends: any.then(|| Instant::now() + time),
            faults,
            seen: 0,
        };
        drop(state);
        self.0.changed.send_replace(());
    }

    /// What is set, and since when in milliseconds of 1970.
    pub fn get(&self) -> (Faults, Option<i64>) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire();
        (state.faults.clone(), state.since)
    }

    /// Who stands still at present: the sagas, by their places.
    pub fn held(&self) -> BTreeMap<String, String> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Passes a place in a saga, `before` or `after` what the step of this key does; stands still there as long as that is wanted.
    pub async fn pass(&self, when: &str, step: &Key) {
        let Some(ends) = self.0.state.lock().unwrap_or_else(PoisonError::into_inner).holds() else { return };
        let key = step.to_string();
        let (step, saga) = key.split_once('@').unwrap_or((&key, ""));
        let place = format!("{when} {step}");
        let mut changed = self.0.changed.subscribe();
        if !self.get().0.hold_at.contains(&place) {
            return;
        }
        {
            let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.contains_key(&place) {
                return;
            }
            held.insert(place.clone(), saga.to_owned());
        }
        let _held = Held(&self.0, &place);
        let named = changed.wait_for(|()| !self.get().0.hold_at.contains(&place));
        let _ = tokio::time::timeout_at(ends, named).await;
    }

    /// What to do with the next request, and how long to wait before.
    pub fn next(&self) -> (Verdict, Duration) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Until when sagas are held at places, if they are.
    fn holds(&self) -> Option<Instant> {
        self.ends.filter(|_| !self.faults.hold_at.is_empty())
    }

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
    async fn the_first_that_comes_to_a_place_stands_still_until_it_is_no_longer_named() {
        let (switch, key) = (Switch::default(), |text: &str| text.parse::<Key>().unwrap());
        let hold = |place: &str| switch.set(Faults { hold_at: vec![place.to_owned()], ..Faults::default() });
        let passes = async |when: &str, step: &str| {
            let key = key(step);
            tokio::time::timeout(Duration::from_secs(60), switch.pass(when, &key)).await.is_ok()
        };
        assert!(passes("before", "charge-card.do@a").await, "nothing is wanted");
        hold("before charge-card.do");
        let mut held = std::pin::pin!(passes("before", "charge-card.do@a"));
        assert!(futures::poll!(&mut held).is_pending());
        assert_eq!(switch.held(), [("before charge-card.do".to_owned(), "a".to_owned())].into());
        for (when, step) in
            [("after", "charge-card.do@a"), ("before", "charge-card.undo@a"), ("before", "charge-card.do@b")]
        {
            assert!(passes(when, step).await, "{when} {step}");
        }
        hold("after charge-card.do");
        assert!(held.await, "it is wanted elsewhere");
        assert!(switch.held().is_empty());
        assert!(!passes("after", "charge-card.do@a").await && switch.held().is_empty(), "given up");
        let began = Instant::now();
        switch.set(Faults { for_seconds: Some(5), ..switch.get().0 });
        assert!(passes("after", "charge-card.do@a").await);
        assert_eq!(began.elapsed().as_secs(), 5);
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
