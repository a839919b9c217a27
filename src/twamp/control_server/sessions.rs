//! The sessions of a control connection, as its commands know them.

use crate::wire::codes::Sid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    Started,
    /// Ended by REFWAIT: nothing runs, but Stop-Sessions counts it (RFC 5357 §3.8).
    Expired,
}

/// Sessions that are accepted and not yet stopped, in the order in which they were accepted.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: Vec<(Sid, Phase)>,
    /// Start-Sessions came, and Stop-Sessions did not.
    started_together: bool,
}

/// What became of the sessions that a command names.
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

    /// Starts those that are named, known and not yet started, each once.
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

    /// Stops those that are named and known, each once.
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
