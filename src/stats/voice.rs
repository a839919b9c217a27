//! Voice quality: the E-model of ITU-T G.107 with the delay impairment of Cole and Rosenbluth, for
//! G.711 with packet loss concealment.

use super::Figures;

/// Estimated quality of a voice call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VoiceQuality {
    /// Transmission rating R, 0 to 93.2.
    pub r_factor: f64,
    /// Conversational mean opinion score MOS-CQ, 1 to 4.4.
    pub mos_cq: f64,
}

/// R without any impairment by the network (G.107 with its default values).
const R_0: f64 = 93.2;
/// Equipment impairment of G.711 (G.113 appendix I).
const EQUIPMENT: f64 = 0.0;
/// Robustness of G.711 with packet loss concealment against random loss (G.113 appendix I).
const LOSS_ROBUSTNESS: f64 = 25.1;
/// Delay in the codec, milliseconds.
const CODEC_MS: f64 = 10.0;
/// Delay from which on a conversation is disturbed, milliseconds.
const DISTURBING_MS: f64 = 177.3;

/// Estimates the voice quality of a path; `None` without a reply.
pub fn voice_quality(figures: &Figures) -> Option<VoiceQuality> {
    let rtt = figures.rtt.as_ref().filter(|rtt| rtt.samples > 0)?;
    // The jitter buffer of the receiver must cover the variation above the minimum.
    let variation_ns = (rtt.mean_ns - rtt.min_ns as f64).max(0.0) / 2.0;
    let one_way_ms = (rtt.mean_ns / 2.0 + 2.0 * variation_ns) / 1e6 + CODEC_MS;
    let decided = figures.probes_received + figures.probes_lost;
    let loss_percent = figures.probes_lost as f64 / decided.max(1) as f64 * 100.0;
    let delay = 0.024 * one_way_ms + 0.11 * (one_way_ms - DISTURBING_MS).max(0.0);
    let loss = EQUIPMENT + (95.0 - EQUIPMENT) * loss_percent / (loss_percent + LOSS_ROBUSTNESS);
    let r_factor = (R_0 - delay - loss).clamp(0.0, 100.0);
    Some(VoiceQuality { r_factor, mos_cq: mos(r_factor) })
}

/// Returns the mean opinion score (G.107 annex B).
fn mos(r: f64) -> f64 {
    (1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6).clamp(1.0, 4.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::DelayStats;

    fn quality(rtt_ms: f64, received: u64, lost: u64) -> VoiceQuality {
        let min_ns = (rtt_ms * 1e6) as i64;
        let rtt = DelayStats {
            samples: received,
            min_ns,
            mean_ns: rtt_ms * 1e6,
            ..DelayStats::default()
        };
        voice_quality(&Figures {
            probes_received: received,
            probes_lost: lost,
            rtt: Some(Box::new(rtt)),
            ..Figures::default()
        })
        .unwrap()
    }

    #[test]
    fn values_computed_by_hand() {
        let perfect = quality(0.0, 100, 0);
        assert!((perfect.r_factor - 92.96).abs() < 0.001 && (perfect.mos_cq - 4.40).abs() < 0.01);
        // 210 ms one way: 0.024 * 210 + 0.11 * 32.7 = 8.637; 2 % loss: 95 * 2 / 27.1 = 7.011.
        let far = quality(400.0, 98, 2);
        assert!((far.r_factor - (93.2 - 8.637 - 7.011)).abs() < 0.001, "{far:?}");
        assert!((far.mos_cq - 3.928).abs() < 0.001, "{far:?}");
        assert!((quality(5000.0, 1, 99).mos_cq - 1.0).abs() < 1e-9);
        assert!(voice_quality(&Figures::default()).is_none());
    }
}
