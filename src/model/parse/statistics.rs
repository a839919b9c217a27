//! Checks the settings of statistics.

use super::{
    super::{AvailabilityRule, ResultKeeping, limits},
    Check,
};
use crate::proto;

const PERCENTILES: [f64; 4] = [50.0, 95.0, 99.0, 99.9];

impl Check {
    /// Checks the storage of results and the number kept in memory.
    pub(super) fn result_keeping(
        &mut self,
        c: &proto::ControlConnection,
    ) -> (ResultKeeping, usize) {
        let history = self.number("history_size", c.history_size, &limits::HISTORY_SIZE) as usize;
        let keeping = match c.persistent_results {
            None | Some(true) => ResultKeeping::Stored,
            Some(false) => ResultKeeping::InMemory(history),
        };
        (keeping, history)
    }

    pub(super) fn percentiles(&mut self, given: &[f64]) -> Vec<f64> {
        if given.is_empty() {
            return PERCENTILES.to_vec();
        }
        if given.len() > limits::MAXIMUM_PERCENTILES {
            let most = limits::MAXIMUM_PERCENTILES;
            self.report(
                "percentiles",
                format!("{} percentiles: expected at most {most}", given.len()),
            );
        }
        for (index, percent) in given.iter().enumerate() {
            if !(*percent > 0.0 && *percent <= 100.0) {
                let why =
                    format!("{percent} is out of range: expected more than 0 and at most 100");
                self.report(&format!("percentiles[{index}]"), why);
            } else if index > 0 && *percent <= given[index - 1] {
                let why =
                    format!("{percent} is not above the one before it: expected rising values");
                self.report(&format!("percentiles[{index}]"), why);
            }
        }
        given.to_vec()
    }

    pub(super) fn availability(&mut self, given: proto::AvailabilityRule) -> AvailabilityRule {
        self.at("availability", |check| {
            let consecutive_intervals = check.number(
                "consecutive_intervals",
                given.consecutive_intervals,
                &limits::AVAILABILITY_INTERVALS,
            );
            let consecutive_high_loss_intervals = match given.consecutive_high_loss_intervals {
                None => consecutive_intervals / 2,
                given => check.number(
                    "consecutive_high_loss_intervals",
                    given,
                    &limits::AVAILABILITY_HIGH_LOSS,
                ),
            };
            if consecutive_high_loss_intervals >= consecutive_intervals {
                check.report(
                    "consecutive_high_loss_intervals",
                    format!(
                        "{consecutive_high_loss_intervals} is not below consecutive_intervals, \
                         {consecutive_intervals}"
                    ),
                );
            }
            AvailabilityRule {
                probes_per_interval: check.number(
                    "probes_per_interval",
                    given.probes_per_interval,
                    &limits::AVAILABILITY_PROBES,
                ),
                loss_percent: check.number(
                    "loss_percent",
                    given.loss_percent,
                    &limits::AVAILABILITY_LOSS_PERCENT,
                ),
                consecutive_intervals,
                consecutive_high_loss_intervals,
            }
        })
    }
}
