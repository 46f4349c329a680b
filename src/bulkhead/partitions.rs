//! One number of permits, divided among several users with a guaranteed share each.

use std::{fmt, sync::Arc};

use super::{Bulkhead, Inner, Permits, config::check_limit, machine::Shares};
use crate::{
    error::{ConfigError, Name},
    event::Identity,
    sync::{Mutex, lock},
};

/// A number of permits divided into partitions, each a [`Bulkhead`] of its own.
///
/// A partition always gets its share, whatever the others do. Beyond its share it gets permits that
/// are guaranteed to nobody, or guaranteed to a partition that is using *them* already elsewhere: a permit is free
/// for partition *p* if
///
/// ```text
/// in_use(p) < share(p)   or   free > Σ(q ≠ p) max(0, share(q) - in_use(q))
/// ```
///
/// Shares that add up to the total make hard walls; the less they add up to, the more capacity floats. A share of zero
/// is best effort, and is refused where all permits are guaranteed to others. Partitions refuse at once, they have no queue.
///
/// ```
/// use mainstay::bulkhead::Partitions;
///
/// let capacity = Partitions::new(20, [("gold", 10), ("free", 5)])?;
/// let gold = capacity.get("gold").expect("is in the list").clone();
/// let payments = mainstay::stack("payments").bulkhead(gold).build()?;
/// # drop(payments);
/// // Without `gold`, `free` may use the 5 that are guaranteed to nobody besides its own.
/// assert_eq!(capacity.get("free").map(|free| free.limit()), Some(10));
/// # Ok::<_, mainstay::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Partitions {
    parts: Arc<[Bulkhead]>,
}

impl Partitions {
    /// `total` permits, with the partitions' names and guaranteed shares.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `total` is zero, there is no partition, two have one name, the shares add up to more than
    /// `total`, or they add up to `total` and one is zero: that partition could never admit a call.
    pub fn new<N: Into<Name>>(
        total: usize,
        shares: impl IntoIterator<Item = (N, usize)>,
    ) -> Result<Self, ConfigError> {
        check_limit(total)?;
        let (names, shares): (Vec<Name>, Vec<usize>) =
            shares.into_iter().map(|(name, share)| (name.into(), share)).unzip();
        ConfigError::unless(!names.is_empty(), "partitions.shares", &names, "one or more")?;
        for (at, name) in names.iter().enumerate() {
            ConfigError::unless(!names[..at].contains(name), "partitions.name", name, "a name used once")?;
        }
        let guaranteed =
            shares.iter().try_fold(0_usize, |sum, &share| sum.checked_add(share)).filter(|&sum| sum <= total);
        let Some(guaranteed) = guaranteed else {
            let allowed = format!("shares that add up to {total} at most");
            return Err(ConfigError::setting("partitions.shares", shares, allowed));
        };
        // The one way to a limit of zero: nothing of its own, and nothing left over by the others.
        let shut = shares.iter().position(|&share| share == 0 && guaranteed == total);
        if let Some(at) = shut {
            let most = total - 1;
            let allowed = format!("shares that add up to {most} at most, since that of {:?} is 0", names[at]);
            return Err(ConfigError::setting("partitions.shares", shares, allowed));
        }
        let machine = Arc::new(Mutex::new(Shares::new(total, shares.iter().copied())));
        let parts = names.into_iter().zip(shares).enumerate().map(|(index, (name, share))| {
            let mut id = Identity::new("bulkhead");
            id.set_name(name);
            Bulkhead(Arc::new(Inner {
                id,
                permits: Permits::Partition(Partition {
                    shares: machine.clone(),
                    index,
                    limit: total - (guaranteed - share),
                }),
            }))
        });
        Ok(Partitions { parts: parts.collect() })
    }

    /// The partition `name`.
    pub fn get(&self, name: &str) -> Option<&Bulkhead> {
        self.iter().find(|part| part.name() == name)
    }

    /// All partitions, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Bulkhead> {
        self.parts.iter()
    }
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One partition's access to the permits of all.
pub(super) struct Partition {
    shares: Arc<Mutex<Shares>>,
    index: usize,
    limit: usize,
}

impl Partition {
    pub(super) fn take(&self) -> bool {
        lock(&self.shares).take(self.index)
    }

    pub(super) fn give_back(&self) {
        lock(&self.shares).give_back(self.index);
    }

    pub(super) fn in_use(&self) -> usize {
        lock(&self.shares).in_use(self.index)
    }

    /// The most that it can have: all but the other shares.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}
