use super::*;

/// Parts that the store had no room for, and removals, are in what it is given next.
#[test]
fn what_was_not_saved_is_saved_the_next_time() {
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
