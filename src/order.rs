//! Which orders of policies are known to do harm, and how much load an order can add.
//!
//! The reasons and the arithmetic are in `docs/stacking.md`.

use crate::{
    error::{ConfigError, Name},
    stack::{Amplification, List, Role},
};

pub(crate) fn roles(list: &impl List) -> Vec<Role> {
    let mut roles = Vec::new();
    list.each(&mut |part| roles.push(part.role()));
    roles
}

/// A rule: whether `outer` may stand around `inner`, and how to put it right if not.
struct Rule {
    forbids: fn(outer: Role, inner: Role) -> bool,
    problem: &'static str,
    fix: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        forbids: |outer, inner| is_retry(outer) && inner == Role::CircuitBreaker,
        problem: "a circuit breaker inside a retry counts attempts instead of calls, so it trips on a fraction of the \
                  failures it was set for",
        fix: "put .circuit_breaker(..) before .retry(..)",
    },
    Rule {
        forbids: |outer, inner| matches!(outer, Role::Bulkhead { .. }) && is_retry(inner),
        problem: "a bulkhead around a retry keeps its permit while the retry sleeps",
        fix: "put .retry(..) before .bulkhead(..)",
    },
    Rule {
        forbids: |outer, inner| inner == Role::Fallback && outer != Role::Fallback,
        problem: "a fallback inside another policy hides failures from it",
        fix: "put .fallback(..) first",
    },
    Rule {
        forbids: |outer, inner| is_retry(outer) && is_retry(inner),
        problem: "two retries multiply their attempts",
        fix: "keep one .retry(..)",
    },
    Rule {
        forbids: |outer, inner| {
            matches!(outer, Role::Retry { repeats_refusals: true, .. })
                && matches!(inner, Role::CircuitBreaker | Role::Bulkhead { .. } | Role::RateLimiter)
        },
        problem: "a retry that repeats refusals spends its attempts and its budget on asking a policy that has just said no",
        fix: "leave .repeat_refusals() out; a bulkhead can queue instead",
    },
    Rule {
        forbids: |outer, inner| outer == Role::Bulkhead { queues: true } && matches!(inner, Role::Deadline),
        problem: "calls wait in the bulkhead's queue before their deadline begins, so expired work is executed",
        fix: "put .deadline(..) before .bulkhead(..)",
    },
];

fn is_retry(role: Role) -> bool {
    matches!(role, Role::Retry { .. })
}

/// `Err` if the roles, outermost first, break a rule.
pub(crate) fn check(stack: &Name, roles: &[Role]) -> Result<(), ConfigError> {
    let error = |problem, fix| Err(ConfigError::Order { stack: stack.clone(), problem, fix });
    for (at, &outer) in roles.iter().enumerate() {
        for &inner in &roles[at + 1..] {
            if let Some(rule) = RULES.iter().find(|rule| (rule.forbids)(outer, inner)) {
                return error(rule.problem, rule.fix);
            }
        }
    }
    // The one rule about something missing: a time limit around the retry but none inside it.
    if let Some(retry) = roles.iter().position(|&role| is_retry(role)) {
        let (outside, inside) = roles.split_at(retry);
        let ends_calls = |role: &Role| matches!(role, Role::Timeout | Role::Deadline);
        if outside.iter().any(ends_calls) && !inside.iter().any(ends_calls) {
            return error(
                "the only time limit is outside the retry, so one attempt that hangs uses up the time of all",
                "add .timeout(..) after .retry(..) for each attempt",
            );
        }
    }
    Ok(())
}

/// The product over all retries, from the innermost outwards: each repeats what the ones inside it do.
pub(crate) fn amplification(roles: &[Role]) -> Amplification {
    let mut result = Amplification { in_total_failure: 1.0, at_worst: 1.0, burst: 0.0 };
    for role in roles.iter().rev() {
        let Role::Retry { attempts, budget, .. } = *role else { continue };
        let attempts = attempts.map_or(f64::INFINITY, f64::from);
        let (in_total_failure, at_worst, burst) = match budget {
            // Without successes nothing refills the budget; with them it pays for `ratio` retries each.
            Some((ratio, saved)) => {
                (1.0, attempts.min(1.0 + ratio), if attempts > 1.0 { saved } else { 0.0 })
            }
            None => (attempts, attempts, 0.0),
        };
        // What is saved outside is repeated by the retries inside; what is saved inside is spent once.
        result.burst += burst * result.at_worst;
        result.in_total_failure *= in_total_failure;
        result.at_worst *= at_worst;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Role = Role::Retry { attempts: Some(3), budget: None, repeats_refusals: false };
    const REPEATING: Role = Role::Retry { attempts: Some(3), budget: None, repeats_refusals: true };
    const BUDGETED: Role =
        Role::Retry { attempts: Some(3), budget: Some((0.1, 100.0)), repeats_refusals: false };
    const QUEUE: Role = Role::Bulkhead { queues: true };

    #[test]
    fn the_recommended_order_is_accepted() {
        let roles = [Role::Fallback, Role::Deadline, Role::CircuitBreaker, BUDGETED, QUEUE, Role::Timeout];
        assert_eq!(check(&"s".into(), &roles), Ok(()));
        // A rate limiter counts calls in one place and attempts in another.
        for place in [2, 4, 5] {
            let mut roles = roles.to_vec();
            roles.insert(place, Role::RateLimiter);
            assert_eq!(check(&"s".into(), &roles), Ok(()));
        }
        assert!(check(&"s".into(), &[REPEATING, Role::RateLimiter]).is_err());
    }

    #[test]
    fn each_harmful_order_is_refused_with_its_own_problem() {
        let orders: [&[Role]; 7] = [
            &[RETRY, Role::CircuitBreaker],
            &[QUEUE, RETRY],
            &[Role::CircuitBreaker, Role::Fallback],
            &[RETRY, RETRY],
            &[REPEATING, Role::Bulkhead { queues: false }],
            &[QUEUE, Role::Deadline],
            &[Role::Deadline, RETRY],
        ];
        let mut problems: Vec<_> = orders
            .iter()
            .map(|roles| match check(&"s".into(), roles) {
                Err(ConfigError::Order { problem, .. }) => problem,
                other => panic!("{roles:?}: {other:?}"),
            })
            .collect();
        problems.sort_unstable();
        problems.dedup();
        assert_eq!(problems.len(), orders.len(), "two orders were refused for the same reason");
    }

    #[test]
    fn amplification_is_the_product_of_the_retries() {
        let of = |roles: &[Role]| amplification(roles);
        assert_eq!(of(&[Role::Timeout]).at_worst, 1.0);
        assert_eq!(of(&[RETRY]).in_total_failure, 3.0);
        assert_eq!(of(&[RETRY, RETRY]).in_total_failure, 9.0);
        let budgeted = of(&[BUDGETED]);
        assert_eq!((budgeted.in_total_failure, budgeted.at_worst, budgeted.burst), (1.0, 1.1, 100.0));
        assert_eq!(of(&[BUDGETED, RETRY]).burst, 300.0, "each saved retry is tried three times");
        assert_eq!(of(&[RETRY, BUDGETED]).burst, 100.0, "what is saved inside is spent once");
        let unbounded = Role::Retry { attempts: None, budget: None, repeats_refusals: false };
        assert_eq!(of(&[unbounded]).in_total_failure, f64::INFINITY);
    }
}
