//! Thresholds of a session.

use super::{
    super::{ThresholdLimit, Thresholds, limits},
    Check,
};
use crate::proto::{self, Threshold};

impl Check {
    pub(super) fn thresholds(&mut self, given: Option<&proto::Thresholds>) -> Thresholds {
        given.map_or_else(Thresholds::default, |given| {
            self.at("thresholds", |check| check.given_thresholds(given))
        })
    }

    fn given_thresholds(&mut self, given: &proto::Thresholds) -> Thresholds {
        let successive =
            self.number("successive_loss", given.successive_loss, &limits::SUCCESSIVE_LOSS);
        let total = self.number("total_loss", given.total_loss, &limits::TOTAL_LOSS);
        let mut all = vec![(Threshold::SuccessiveLoss, successive), (Threshold::TotalLoss, total)];
        for (threshold, field, value) in [
            (Threshold::Rtt, "rtt", given.rtt),
            (Threshold::MaxRtt, "max_rtt", given.max_rtt),
            (Threshold::JitterRtt, "jitter_rtt", given.jitter_rtt),
            (Threshold::StdDevRtt, "std_dev_rtt", given.std_dev_rtt),
            (Threshold::EgressTime, "egress_time", given.egress_time),
            (Threshold::JitterEgress, "jitter_egress", given.jitter_egress),
            (Threshold::StdDevEgress, "std_dev_egress", given.std_dev_egress),
            (Threshold::IngressTime, "ingress_time", given.ingress_time),
            (Threshold::JitterIngress, "jitter_ingress", given.jitter_ingress),
            (Threshold::StdDevIngress, "std_dev_ingress", given.std_dev_ingress),
        ] {
            all.push((threshold, self.duration(field, value, &limits::DELAY_THRESHOLD)));
        }
        let on = all.into_iter().filter(|(_, limit)| *limit > 0);
        Thresholds {
            limits: on.map(|(threshold, limit)| ThresholdLimit { threshold, limit }).collect(),
            clear_percent: self.number(
                "clear_percent",
                given.clear_percent,
                &limits::CLEAR_PERCENT,
            ),
            clear_after_tests: self.number(
                "clear_after_tests",
                given.clear_after_tests,
                &limits::CLEAR_AFTER,
            ) as u32,
        }
    }
}
