//! Whether two JSON texts say the same.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// How deep what lies in each other is compared; deeper it has to be the same text. No input is read that is deeper.
const DEPTH: u32 = 128;

/// Whether two JSON texts say the same: whatever stands between their parts, and in whatever order the members of an object come. Numbers are
/// compared as they are written, so that none is rounded.
pub(super) fn same(a: &str, b: &str) -> bool {
    same_within(a, b, DEPTH)
}

fn same_within(a: &str, b: &str, depth: u32) -> bool {
    let (a, b) = (a.trim_ascii(), b.trim_ascii());
    if a == b {
        return true;
    }
    let Some(depth) = depth.checked_sub(1) else { return false };
    let same_values = |a: &RawValue, b: &RawValue| same_within(a.get(), b.get(), depth);
    match (a.as_bytes().first(), b.as_bytes().first()) {
        (Some(b'{'), Some(b'{')) => both::<BTreeMap<String, &RawValue>>(a, b).is_some_and(|(a, b)| {
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && same_values(a.1, b.1))
        }),
        (Some(b'['), Some(b'[')) => both::<Vec<&RawValue>>(a, b)
            .is_some_and(|(a, b)| a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same_values(a, b))),
        (Some(b'"'), Some(b'"')) => both::<String>(a, b).is_some_and(|(a, b)| a == b),
        _ => false,
    }
}

/// Both texts as a `T`. What makes no sense is the same as nothing.
fn both<'a, T: serde::Deserialize<'a>>(a: &'a str, b: &'a str) -> Option<(T, T)> {
    Some((serde_json::from_str(a).ok()?, serde_json::from_str(b).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_space_and_escapes_do_not_matter() {
        for (a, b) in [
            (r#"{"a":1,"b":[{"c":2,"d":3}]}"#, r#" { "b" : [ { "d" : 3 , "c" : 2 } ] , "a" : 1 } "#),
            (r#"{"a":"caf\u00e9"}"#, r#"{"\u0061":"café"}"#),
            ("[]", "[ ]"),
            ("{}", "{ }"),
            ("null", "null\n"),
        ] {
            assert!(same(a, b) && same(b, a), "{a} {b}");
        }
    }

    #[test]
    fn what_is_not_the_same_is_not_taken_for_it() {
        for (a, b) in [
            ("1000000000000000000001", "1000000000000000000002"),
            (r#"{"wei":[1000000000000000000001]}"#, r#"{"wei":[1000000000000000000002]}"#),
            ("0.1", "0.10000000000000000001"),
            ("1", "1.0"),
            ("1", "\"1\""),
            ("true", "false"),
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("[1,1]", "[1]"),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            (r#"{"a":1}"#, r#"{"a":2}"#),
            ("\"a\"", "\"A\""),
            ("{}", "[]"),
            // Neither makes sense.
            ("{1}", "{2}"),
            ("[1", "[2"),
            ("", "1"),
        ] {
            assert!(!same(a, b) && !same(b, a), "{a} {b}");
        }
    }

    #[test]
    fn what_is_as_deep_as_memory_allows_is_compared() {
        let nested =
            |depth: usize, inside: &str| format!("{}{inside}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(same(&nested(100, "1"), &nested(100, " 1")));
        assert!(same(&nested(100_000, "1"), &nested(100_000, "1")));
        assert!(!same(&nested(100_000, "1"), &nested(100_000, " 1")));
    }
}
