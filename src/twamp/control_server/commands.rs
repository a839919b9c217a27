//! Commands with a body: session requests and individual control.

use super::{ControlServer, RequestedSession, ServerAction, ServerError, State};
use crate::wire::{
    codes::{Accept, Command, Modes, Sid, TypeP},
    individual::{self, IndividualHeader},
    request::RequestTwSession,
};

/// Padding of the longest possible datagram.
const LONGEST_PADDING: u32 = 65_507;

impl ControlServer {
    pub(super) fn handle_request(&mut self, request: &RequestTwSession) {
        let dscp = TypeP(request.type_p.get()).dscp();
        let padding_length = request.padding_length.get();
        let fault = if request.conf_sender != 0 || request.conf_receiver != 0 {
            "Conf-Sender or Conf-Receiver is not 0".into()
        } else if request.schedule_slots.get() != 0 || request.packets.get() != 0 {
            "schedule slots or a number of packets, as OWAMP has them".into()
        } else if !matches!(request.ipvn(), 4 | 6) {
            format!("IPVN {}, neither 4 nor 6", request.ipvn())
        } else if request.sender_port.get() == 0 {
            "Sender Port 0".into()
        } else if padding_length > LONGEST_PADDING {
            format!("Padding Length {padding_length}, more than a datagram holds")
        } else if !self.fits_reflected_octets(request) {
            "the octets to reflect do not fit into replies as long as the probes".into()
        } else if dscp.is_none() {
            format!("Type-P Descriptor {:#x}, which is no DSCP", request.type_p.get())
        } else {
            String::new()
        };
        let Some(dscp) = dscp.filter(|_| fault.is_empty()) else {
            return self.refuse(Accept::NOT_SUPPORTED, fault);
        };
        let reflects = self.mode.contains(Modes::REFLECT_OCTETS);
        self.state = State::Answering(if reflects { request.reflected_octets.get() } else { 0 });
        let timeout_ns = (u128::from(request.timeout.get()) * 1_000_000_000) >> 32;
        self.actions.push_back(ServerAction::Request(RequestedSession {
            ip_version: request.ipvn(),
            sender_address: request.sender_address(),
            sender_port: request.sender_port.get(),
            receiver_address: request.receiver_address(),
            receiver_port: request.receiver_port.get(),
            padding_length,
            timeout_ns: timeout_ns as u64,
            dscp,
        }));
    }

    /// Returns true when the octets to reflect fit into replies as long as the probes (RFC 6038
    /// §4.3).
    fn fits_reflected_octets(&self, request: &RequestTwSession) -> bool {
        let length = u32::from(request.reflected_length.get());
        if !self.mode.contains(Modes::REFLECT_OCTETS) || length == 0 {
            return true;
        }
        let format = self.format(Sid::default());
        let truncated = (format.reply_octets() - format.probe_octets()) as u32;
        let padding = request.padding_length.get();
        padding > length && padding >= length + truncated
    }

    /// Handles Start-N-Sessions and Stop-N-Sessions with one ack for each Accept value (RFC 5938
    /// §3).
    pub(super) fn handle_individual(
        &mut self,
        command: Command,
    ) -> Option<Result<(), ServerError>> {
        let header: &IndividualHeader = self.input.peek()?;
        let (received, expected) = (header.sessions.get(), self.sessions.len());
        // The announced length is limited before the machine waits for the octets. One SID more
        // than known is allowed, so that its refusal can name it.
        if received > expected + 1 {
            return Some(Err(ServerError::TooManySessions { received, expected }));
        }
        let message = match self.input.pop_octets(individual::octets(received as usize))? {
            Ok(message) => message,
            Err(error) => return Some(Err(error.into())),
        };
        let sids = individual::sids(&message);
        let starts = command == Command::START_N_SESSIONS;
        let outcome = if starts { self.sessions.start(&sids) } else { self.sessions.stop(&sids) };
        if starts && !outcome.done.is_empty() {
            self.actions.push_back(ServerAction::Start(outcome.done.clone()));
            self.state = State::Starting;
        } else if !outcome.done.is_empty() {
            self.actions.push_back(ServerAction::Stop(outcome.done.clone()));
        }
        let ack = if starts { Command::START_N_ACK } else { Command::STOP_N_ACK };
        for (accept, sids) in [(Accept::OK, outcome.done), (Accept::NOT_SUPPORTED, outcome.refused)]
        {
            // A command that names no session is not acknowledged positively.
            let about_none = received == 0 && accept != Accept::OK;
            if !sids.is_empty() || about_none {
                self.send_sealed(individual::message(ack, accept.0, &sids));
            }
        }
        Some(Ok(()))
    }
}
