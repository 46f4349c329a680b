//! Sets of steps: one word each.

use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// A set of steps, by their place in the definition.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Steps(u64);

impl Steps {
    /// The most steps that a definition may have.
    pub(crate) const MAX: usize = 64;
    pub(crate) const NONE: Steps = Steps(0);

    /// The steps 0 to `count - 1`.
    pub(crate) fn first(count: usize) -> Self {
        Steps(if count >= Self::MAX { u64::MAX } else { (1 << count) - 1 })
    }

    pub(crate) fn one(step: usize) -> Self {
        Steps(1 << step)
    }

    pub(crate) fn contains(self, step: usize) -> bool {
        self.0 & 1 << step != 0
    }

    pub(crate) fn insert(&mut self, step: usize) {
        self.0 |= 1 << step;
    }

    pub(crate) fn remove(&mut self, step: usize) {
        self.0 &= !(1 << step);
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of these are in `other`.
    pub(crate) fn within(self, other: Steps) -> bool {
        (self - other).is_empty()
    }

    /// Whether none of these is in `other`.
    pub(crate) fn apart_from(self, other: Steps) -> bool {
        (self & other).is_empty()
    }

    /// The members in ascending order.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let step = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (step < Self::MAX).then_some(step)
        })
    }
}

impl BitOr for Steps {
    type Output = Steps;

    fn bitor(self, other: Steps) -> Steps {
        Steps(self.0 | other.0)
    }
}

impl BitOrAssign for Steps {
    fn bitor_assign(&mut self, other: Steps) {
        self.0 |= other.0;
    }
}

impl BitAnd for Steps {
    type Output = Steps;

    fn bitand(self, other: Steps) -> Steps {
        Steps(self.0 & other.0)
    }
}

impl Sub for Steps {
    type Output = Steps;

    fn sub(self, other: Steps) -> Steps {
        Steps(self.0 & !other.0)
    }
}

impl FromIterator<usize> for Steps {
    fn from_iter<T: IntoIterator<Item = usize>>(steps: T) -> Self {
        let mut set = Steps::NONE;
        steps.into_iter().for_each(|step| set.insert(step));
        set
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_steps_that_were_put_in_also_the_last_possible_one() {
        let set: Steps = [0, 5, 63].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(set.within(Steps::first(64)) && !set.within(Steps::first(63)));
        assert_eq!(Steps::first(3).iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Steps::NONE.iter().count(), 0);
    }
}
