//! Reordering (RFC 4737): a reply that arrives after the reply to a later probe. Its extent is the
//! number of replies to later probes that arrived before it (§4.2.2).

use std::collections::VecDeque;

use super::Reordering;

/// Number of latest replies in which an extent is searched.
const MAX_EXTENT: usize = 64;

/// Sequence numbers of answered probes in the order of their replies.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// Latest replies in the order of arrival.
    latest: VecDeque<u32>,
    highest: Option<u32>,
}

impl Arrivals {
    /// Adds the next reply. Returns its extent if it is reordered.
    pub(super) fn add(&mut self, sequence: u32) -> Option<u32> {
        let in_order =
            self.highest.is_none_or(|highest| sequence.wrapping_sub(highest).cast_signed() > 0);
        let extent = (!in_order).then(|| {
            // The distance to the earliest reply with a later number.
            let earliest = self
                .latest
                .iter()
                .position(|earlier| earlier.wrapping_sub(sequence).cast_signed() > 0);
            earliest.map_or(MAX_EXTENT, |earliest| self.latest.len() - earliest) as u32
        });
        if in_order {
            self.highest = Some(sequence);
        }
        if self.latest.len() >= MAX_EXTENT {
            self.latest.pop_front();
        }
        self.latest.push_back(sequence);
        extent
    }
}

/// Adds the extent of one reordered reply.
pub(super) fn count(into: &mut Option<Reordering>, extent: u32) {
    merge(into, Some(&Reordering { max_extent: extent, total_extent: extent.into() }));
}

/// Adds the reordering of a later test.
pub(super) fn merge(into: &mut Option<Reordering>, later: Option<&Reordering>) {
    let Some(later) = later else { return };
    let into = into.get_or_insert_with(Reordering::default);
    into.max_extent = into.max_extent.max(later.max_extent);
    into.total_extent += later.total_extent;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_as_in_the_examples_of_the_standard() {
        let extents = |numbers: &[u32]| -> Vec<Option<u32>> {
            let mut arrivals = Arrivals::default();
            numbers.iter().map(|number| arrivals.add(*number)).collect()
        };
        // RFC 4737 §7.1, table 1: 4 arrives after 5 to 8.
        let late = extents(&[1, 2, 3, 5, 6, 7, 8, 4, 9, 10]);
        assert_eq!(late.iter().flatten().collect::<Vec<_>>(), [&4]);
        // §7.2, table 2: 4 is reordered with extent 5, 5 with 6, 6 with 7... by the rule alone.
        let several = extents(&[1, 2, 3, 7, 8, 9, 10, 4, 5, 6, 11]);
        assert_eq!(several.iter().flatten().copied().collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(extents(&[u32::MAX, 0, 1]), [None; 3], "numbers go round");
    }
}
