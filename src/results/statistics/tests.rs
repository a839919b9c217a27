use super::*;
use crate::model::ResultKeeping;

/// Parts and removals that the store did not accept are included in the next attempt.
#[test]
fn unsaved_parts_are_saved_the_next_time() {
    let mut aggregator = Aggregator::default();
    let subject = |connection| {
        Arc::new(Subject::new(connection, "s", BTreeMap::new(), ResultKeeping::Stored))
    };
    let figures = Figures { probes_sent: 3, ..Figures::default() };
    for connection in ["stays", "goes"] {
        aggregator.minute(&subject(connection), 7, &figures, UnixTime(0));
    }
    let first = aggregator.take_changed(10);
    assert!(aggregator.take_changed(10).is_empty());
    aggregator.mark_dirty(first.clone());
    let sorted = |mut changed: Changed| {
        changed.sort();
        changed
    };
    assert_eq!(sorted(aggregator.take_changed(10)), sorted(first));

    let key = ("stays".to_owned(), "s".to_owned());
    aggregator.plans.set(Arc::new([(key, Plan::default())].into()));
    aggregator.follow();
    let removed = aggregator.take_changed(10);
    let goes = |changed: &Changed| {
        changed
            .iter()
            .filter(|(key, content)| key.starts_with(b"goes") && content.is_none())
            .count()
    };
    assert!(goes(&removed) > 2, "{removed:?}");
    aggregator.mark_dirty(removed.clone());
    assert_eq!(sorted(aggregator.take_changed(10)), sorted(removed));
}

/// After a clock that was ahead for some days, no interval in the future remains, and later results
/// are not treated as late.
#[test]
fn future_intervals_are_removed_when_the_clock_is_set_back() {
    const MINUTES_OF_A_DAY: u64 = 24 * 60;
    let mut aggregator = Aggregator::default();
    let subject = Arc::new(Subject::new("c", "s", BTreeMap::new(), ResultKeeping::Stored));
    let figures = Figures { probes_sent: 3, ..Figures::default() };
    let at = |minute: u64| UnixTime(minute * 60 * crate::time::NANOS_PER_SECOND);
    let day = 20_000 * MINUTES_OF_A_DAY;
    let ahead = day + 2 * MINUTES_OF_A_DAY;
    for minute in [day, ahead, ahead + 1] {
        aggregator.minute(&subject, minute, &figures, UnixTime(0));
    }
    let close =
        |aggregator: &mut Aggregator, minute| aggregator.close(at(minute), None, 10).0.len();
    assert!(close(&mut aggregator, ahead + 1) >= 2);
    aggregator.forget_future(at(day + 1));
    let starts = |aggregator: &Aggregator| -> Vec<u64> {
        let query = StatisticsQuery { current: true, ..StatisticsQuery::default() };
        let starts = aggregator.statistics(&query).into_iter();
        starts.filter_map(|one| Some(one.interval_start_time?.seconds as u64 / 60)).collect()
    };
    assert!(starts(&aggregator).iter().all(|start| *start <= day + 1));
    // Later intervals are complete, also those of a day.
    for minute in day + 1..=day + MINUTES_OF_A_DAY {
        aggregator.minute(&subject, minute, &figures, UnixTime(0));
        close(&mut aggregator, minute + 2);
    }
    let kept = starts(&aggregator);
    for start in [day + MINUTES_OF_A_DAY - 15, day + MINUTES_OF_A_DAY - 60, day] {
        assert!(kept.contains(&start), "{start} in {kept:?}");
    }
}
