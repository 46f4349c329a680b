//! Durations in files as a person writes them, `"250ms"` or `"1h 30m"`: for `#[serde(with = "crate::human")]`.
//!
//! The longest duration, which stands for "no limit", is written as `"never"`.

use std::{fmt, time::Duration};

use serde::{
    Deserializer, Serializer,
    de::{self, Visitor},
};

const NEVER: &str = "never";

pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if *duration == Duration::MAX {
        return serializer.serialize_str(NEVER);
    }
    serializer.collect_str(&humantime::format_duration(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Human)
}

struct Human;

impl Visitor<'_> for Human {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, like \"250ms\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        if text == NEVER {
            return Ok(Duration::MAX);
        }
        humantime::parse_duration(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// The same for `Option<Duration>`: for `#[serde(with = "crate::human::option", default)]`.
pub(crate) mod option {
    use std::{fmt, time::Duration};

    use serde::{
        Deserializer, Serializer,
        de::{self, Visitor},
    };

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        deserializer.deserialize_option(Maybe)
    }

    struct Maybe;

    impl<'de> Visitor<'de> for Maybe {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with its unit, like \"250ms\", or nothing")
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Both {
        #[serde(with = "crate::human")]
        wait: Duration,
        #[serde(with = "option", default)]
        limit: Option<Duration>,
    }

    #[test]
    fn durations_are_written_as_a_person_writes_them_and_read_back() {
        let both = Both { wait: Duration::from_millis(1_250), limit: Some(Duration::MAX) };
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(text, r#"{"wait":"1s 250ms","limit":"never"}"#);
        assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both);
    }

    #[test]
    fn a_missing_limit_is_none_and_a_bare_number_is_refused() {
        let both: Both = serde_json::from_str(r#"{"wait":"2h"}"#).unwrap();
        assert_eq!((both.wait.as_secs(), both.limit), (7_200, None));
        for text in [r#"{"wait":250}"#, r#"{"wait":"250"}"#] {
            let error = serde_json::from_str::<Both>(text).unwrap_err();
            assert!(error.to_string().contains("like \"250ms\""), "{error}");
        }
    }
}
