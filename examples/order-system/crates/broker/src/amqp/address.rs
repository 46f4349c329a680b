//! `amqp://user:password@host:port/vhost?prefix=…`, and how to say it without the password.

use lapin::uri::{AMQPScheme, AMQPUri};

use crate::BrokerError;

/// Where RabbitMQ is.
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    /// Put before the name of every queue and exchange.
    pub(super) prefix: String,
    /// Without the password.
    pub(super) shown: String,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, BrokerError> {
        let bad = |reason: &str| BrokerError::BadAddress {
            address: without_password(text),
            // The reason may quote the address.
            reason: reason.replace(text, &without_password(text)),
        };
        let (rest, prefix) = split_prefix(text);
        let mut uri: AMQPUri =
            rest.parse().map_err(|error: String| bad(&error.replace(&rest, &without_password(&rest))))?;
        if uri.scheme == AMQPScheme::AMQPS {
            return Err(bad(
                "TLS is not built in: put a proxy before it, or use `amqp://` within one machine",
            ));
        }
        if prefix.len() > 100 {
            return Err(bad("the prefix is longer than 100 bytes"));
        }
        // A peer that has vanished without a word is noticed within two heartbeats, and a connection attempt ends.
        uri.query.heartbeat.get_or_insert(10);
        uri.query.connection_timeout.get_or_insert(5000);
        Ok(Self { uri, prefix, shown: without_password(text) })
    }
}

/// Takes the query parameter `prefix` out, which is ours and not AMQP's.
fn split_prefix(text: &str) -> (String, String) {
    let Some((base, query)) = text.split_once('?') else { return (text.to_owned(), String::new()) };
    let (ours, theirs): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|parameter| parameter.starts_with("prefix="));
    let prefix = ours.first().and_then(|parameter| parameter.strip_prefix("prefix=")).unwrap_or_default();
    let rest = if theirs.is_empty() { base.to_owned() } else { format!("{base}?{}", theirs.join("&")) };
    (rest, prefix.to_owned())
}

/// The text without what stands between the first `:` and the last `@` of its authority. Works on broken addresses too.
pub(crate) fn without_password(text: &str) -> String {
    let start = text.find("://").map_or(0, |scheme| scheme + 3);
    // The last `@` of all: in a broken address a password may hold any character.
    let Some(end) = text.rfind('@').filter(|end| *end >= start) else { return text.to_owned() };
    let user = text[start..end].split(':').next().unwrap_or_default();
    format!("{}{user}{}", &text[..start], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (text, shown) in [
            ("amqp://ann:secret@host:1/%2f", "amqp://ann@host:1/%2f"),
            ("amqp://ann:se:cr@et@host/v?heartbeat=5", "amqp://ann@host/v?heartbeat=5"),
            ("amqp://ann:se/cr?et@host/v", "amqp://ann@host/v"),
            ("amqp://ann@host", "amqp://ann@host"),
            ("amqp://host", "amqp://host"),
            ("ann:secret@host", "ann@host"),
            ("", ""),
        ] {
            assert_eq!(without_password(text), shown);
        }
        for wrong in ["amqp://ann:secret@:x", "amqps://ann:secret@host", "amqp://ann:secret@host?heartbeat=x"]
        {
            let error = Address::parse(wrong).err().expect("it is wrong").to_string();
            assert!(!error.contains("secret"), "{error}");
            assert!(error.contains("ann@"), "{error}");
        }
    }

    #[test]
    fn the_prefix_is_ours_and_the_rest_is_theirs() {
        let address = Address::parse("amqp://host/%2f?heartbeat=7&prefix=test-1.&frame_max=4096").unwrap();
        assert_eq!(address.prefix, "test-1.");
        assert_eq!(address.uri.query.heartbeat, Some(7));
        assert_eq!(address.uri.query.frame_max, Some(4096));
        let address = Address::parse("amqp://host/%2f?prefix=x.").unwrap();
        assert_eq!((address.prefix.as_str(), address.uri.query.heartbeat), ("x.", Some(10)));
        assert_eq!(Address::parse("amqp://host").unwrap().prefix, "");
    }
}
