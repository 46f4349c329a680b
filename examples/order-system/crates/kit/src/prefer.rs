//! What a client would rather have: the header `Prefer` of RFC 7240, read in the same way by whoever waits and by whoever waits for that one.

use http::{HeaderMap, HeaderName};

/// The header.
pub static PREFER: HeaderName = HeaderName::from_static("prefer");

/// The seconds in `Prefer: respond-async, wait=10`, with or without quotes around the number. The first `wait` holds: if it is no number,
/// there is no such wish.
pub fn wait(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut waits = values.flat_map(|value| parts(value, ',')).filter_map(|preference| {
        // What stands behind a `;` belongs to the preference before it.
        let (name, value) = parts(preference, ';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim())
    });
    let wait = waits.next()?;
    let digits = wait.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(wait);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// What stands between the separators; one in quotes is none.
fn parts(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |it: char| {
        quoted ^= it == '"' && !escaped;
        escaped = it == '\\' && quoted && !escaped;
        it == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_of(values: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&PREFER, value.parse().unwrap());
        }
        wait(&headers)
    }

    #[test]
    fn a_wish_to_wait_is_heard_in_each_form_of_it() {
        for (value, seconds) in [
            ("wait=20", 20),
            ("wait=\"20\"", 20),
            ("Wait = 5", 5),
            ("respond-async, wait=5", 5),
            ("respond-async,wait=\"5\";x=1, handling=lenient", 5),
            ("wait=3, wait=9", 3),
            ("x=\"a, wait=1; \\\", wait=2\", wait=7", 7),
            ("wait=0", 0),
            ("wait=99999999999999999999999", u64::MAX),
        ] {
            assert_eq!(wait_of(&[value]), Some(seconds), "{value}");
        }
        assert_eq!(wait_of(&["respond-async", "wait=4"]), Some(4));
    }

    #[test]
    fn nonsense_is_no_wish() {
        for value in [
            "",
            "wait",
            "wait=",
            "wait=soon",
            "wait=soon, wait=5",
            "wait=-1",
            "wait=+1",
            "wait=1.5",
            "wait=\"",
            "wait=\"\"",
            "wait=\"5",
            "await=5",
            "respond-async; wait=5",
            "x=\"wait=5\"",
            "x=\", wait=5",
        ] {
            assert_eq!(wait_of(&[value]), None, "{value}");
        }
        assert_eq!(wait_of(&[]), None);
    }
}
