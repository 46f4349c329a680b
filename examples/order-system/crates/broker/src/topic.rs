//! Which topics a binding wants: the table of AMQP's topic exchange, used by every broker here.

/// Whether `pattern` wants `topic`. Both are words between dots; `*` stands for exactly one word, `#` for any number, none included.
///
/// ```
/// use order_broker::matches;
/// assert!(matches("order.*", "order.created"));
/// assert!(!matches("order.*", "order.item.added"));
/// assert!(matches("order.#", "order"));
/// assert!(matches("#", ""));
/// ```
pub fn matches(pattern: &str, topic: &str) -> bool {
    let topic: Vec<&str> = words(topic).collect();
    // `reached[n]`: what was read of the pattern so far can stand for the first n words of the topic.
    let mut reached = vec![false; topic.len() + 1];
    reached[0] = true;
    for word in words(pattern) {
        if word == "#" {
            let from = reached.iter().position(|here| *here).unwrap_or(reached.len());
            reached[from..].fill(true);
        } else {
            for n in (0..topic.len()).rev() {
                reached[n + 1] = reached[n] && (word == "*" || word == topic[n]);
            }
            reached[0] = false;
        }
    }
    reached[topic.len()]
}

/// As RabbitMQ splits: the empty string has no word at all, `a..b` has an empty one in the middle.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('.').filter(move |_| !text.is_empty())
}
