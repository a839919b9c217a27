//! Sessions of a control connection from the view of its commands.

use crate::wire::codes::Sid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    Started,
    /// Ended by REFWAIT; Stop-Sessions still counts it (RFC 5357 §3.8).
    Expired,
}

/// Accepted and not yet stopped sessions in the order of acceptance.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: Vec<(Sid, Phase)>,
    /// Set between Start-Sessions and Stop-Sessions.
    started_together: bool,
}

/// Outcome of a command for the sessions that it names.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: Vec<Sid>,
    pub(super) refused: Vec<Sid>,
}

impl Sessions {
    pub(super) fn accept(&mut self, sid: Sid) {
        self.all.push((sid, Phase::Accepted));
    }

    pub(super) fn len(&self) -> u32 {
        self.all.len() as u32
    }

    pub(super) fn any_started(&self) -> bool {
        self.all.iter().any(|(_, phase)| *phase == Phase::Started)
    }

    pub(super) fn started_together(&self) -> bool {
        self.started_together
    }

    pub(super) fn start_all(&mut self) -> Vec<Sid> {
        self.started_together = true;
        self.all.iter_mut().for_each(|(_, phase)| *phase = Phase::Started);
        self.all.iter().map(|(sid, _)| *sid).collect()
    }

    pub(super) fn stop_all(&mut self) -> Vec<Sid> {
        self.started_together = false;
        self.all.drain(..).map(|(sid, _)| sid).collect()
    }

    /// Starts the named sessions that are known and not yet started, each once.
    pub(super) fn start(&mut self, sids: &[Sid]) -> Outcome {
        let mut outcome = Outcome::default();
        for sid in sids {
            match self.all.iter_mut().find(|(known, _)| known == sid) {
                Some((_, phase @ Phase::Accepted)) => {
                    *phase = Phase::Started;
                    outcome.done.push(*sid);
                }
                _ => outcome.refused.push(*sid),
            }
        }
        outcome
    }

    /// Stops the named sessions that are known, each once.
    pub(super) fn stop(&mut self, sids: &[Sid]) -> Outcome {
        let mut outcome = Outcome::default();
        for sid in sids {
            match self.all.iter().position(|(known, _)| known == sid) {
                Some(index) => {
                    self.all.remove(index);
                    outcome.done.push(*sid);
                }
                None => outcome.refused.push(*sid),
            }
        }
        outcome
    }

    pub(super) fn expire(&mut self, sid: Sid) {
        if let Some((_, phase)) = self.all.iter_mut().find(|(known, _)| *known == sid) {
            *phase = Phase::Expired;
        }
    }
}
