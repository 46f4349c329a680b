//! What every broker has to show. The same checks run on each; a check panics with what it missed.
//!
//! A test file names its place and gets one test per check:
//!
//! ```ignore
//! order_broker::conformance!(|name| place::new(name));
//! ```

mod failures;
mod order;
mod routing;
mod sharing;
mod support;

use std::sync::Arc;
use std::time::Duration;

pub use self::failures::*;
pub use self::order::*;
pub use self::routing::*;
pub use self::sharing::*;
pub use self::support::within;
use crate::{BoxFuture, Broker};

/// Where a check finds its broker: empty queues that nobody else uses.
pub trait Place: Send + Sync {
    /// A broker on the messages of this place. Each call opens another one, as another process would.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>>;

    /// Whether the order per key survives retries and several consumers.
    fn keeps_order(&self) -> bool {
        true
    }

    /// How long something may take that has to happen. Never waited for in full by what is right.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// A check.
pub type Check = for<'a> fn(&'a dyn Place) -> BoxFuture<'a, ()>;

/// Makes one test of each check. The argument is `fn(&str) -> Option<(tokio::runtime::Runtime, impl Place)>`: it gets the test's name, and says
/// `None` where the check is to be skipped, after having said so aloud.
#[macro_export]
macro_rules! conformance {
    ($place:expr) => {
        $crate::conformance!(@each $place;
            topics_are_matched_by_the_one_table,
            each_queue_gets_each_event,
            a_message_comes_as_it_was_sent,
            what_nobody_wants_is_told,
            who_only_publishes_declares_the_exchange_alone,
            bindings_are_added_and_declaring_again_changes_nothing,
            what_makes_no_sense_is_refused,
            what_is_confirmed_is_in_the_queue,
            two_consumers_share_without_loss_and_without_doubles,
            nobody_holds_more_than_its_prefetch,
            a_burst_drains,
            what_one_publishes_another_one_gets,
            batches_come_and_go,
            a_dropped_next_loses_nothing,
            a_dropped_delivery_returns,
            a_closed_consumer_gives_back_what_nobody_saw,
            poison_dies_with_reason_and_count_and_others_pass,
            the_dead_are_replayed,
            the_dead_are_discarded_by_name,
            a_failed_message_makes_room_for_the_next,
            a_rejected_message_is_dead_at_once,
            what_is_never_answered_dies_at_last,
            order_per_key_is_kept,
            order_per_key_is_kept_over_retries,
            the_dead_do_not_block_their_key,
            stats_tell_where_messages_are,
        );
    };
    (@each $place:expr; $($check:ident),* $(,)?) => {
        $(
            #[test]
            fn $check() {
                if let Some((runtime, place)) = ($place)(stringify!($check)) {
                    runtime.block_on($crate::conformance::$check(&place));
                }
            }
        )*
    };
}
