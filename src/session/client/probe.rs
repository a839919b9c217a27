//! Probe of a server: one attempt, from the resolution of its name to the reply to a test packet.
//! Neither the results nor the status record it.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    connect,
    negotiate::{self, Established},
    open::OpenSession,
    sender::sender_config,
};
use crate::{
    model::{ControlConnection, Extensions, SendAddresses},
    net::{clock, random},
    proto::{
        DiscardedPackets, FailureCause, OneWayValidity, ProbeServerResponse, ProbeStage,
        ProbeStatus,
    },
    results::convert,
    session::Derivation,
    time::TAI_OFFSET_SECONDS,
    twamp::{
        connection::{AttemptContext, ExtensionProbe, Failure, SOCKET_WAIT_NS, Suspect},
        control_client::Stage,
        sender::{SenderEvent, SessionSender},
    },
    wire::codes::Modes,
};

/// Largest number of reasons that are reported for discarded packets.
const MAX_DISCARDED: usize = 8;

/// Probes the server of a connection with one session.
pub async fn probe_server(
    config: &ControlConnection,
    derivation: &Derivation,
) -> ProbeServerResponse {
    let mut found = ProbeServerResponse::default();
    let extensions = ExtensionProbe::default().extensions(config, clock::monotonic());
    let always = config.send_addresses == SendAddresses::Always;
    let first = attempt(config, (extensions, always), derivation, &mut found).await;
    let failure = match first {
        Ok(()) if found.stage() == ProbeStage::Done || !found.discarded.is_empty() => return found,
        Ok(()) => return retry_with_addresses(config, extensions, derivation, found).await,
        Err(failure) => failure,
    };
    if matches!(failure.suspect, Suspect::None | Suspect::Addresses) {
        found = with_failure(found, &failure);
        let may_help = failure.suspect == Suspect::Addresses
            || failure.cause == FailureCause::Rejected && found.stage() == ProbeStage::Request;
        return match may_help {
            true => retry_with_addresses(config, extensions, derivation, found).await,
            false => found,
        };
    }
    let mut without = ProbeServerResponse::default();
    match attempt(config, (Extensions::NONE, always), derivation, &mut without).await {
        Ok(()) => {
            without.extensions_refused = true;
            without.detail = format!(
                "works without extensions only; with {}: {}. {}",
                Modes(found.mode),
                failure.detail,
                without.detail
            );
            without
        }
        // Extensions were not the reason.
        Err(_) => {
            let found = with_failure(found, &failure);
            retry_with_addresses(config, extensions, derivation, found).await
        }
    }
}

/// Tries a server again with addresses in the request, if zeros may be the reason why it does not
/// reflect. Returns the first result if the addresses do not help.
async fn retry_with_addresses(
    config: &ControlConnection,
    extensions: Extensions,
    derivation: &Derivation,
    found: ProbeServerResponse,
) -> ProbeServerResponse {
    if config.send_addresses != SendAddresses::Auto || found.stage() < ProbeStage::Request {
        return found;
    }
    let mut again = ProbeServerResponse::default();
    let tried = attempt(config, (extensions, true), derivation, &mut again).await;
    if tried.is_err() || again.stage() != ProbeStage::Done {
        return found;
    }
    again.detail = format!(
        "works with addresses in the request only (send_addresses); with zeros: {}. {}",
        found.detail, again.detail
    );
    again
}

fn with_failure(found: ProbeServerResponse, failure: &Failure) -> ProbeServerResponse {
    ProbeServerResponse {
        cause: failure.cause.into(),
        accept_code: failure.accept_code.into(),
        detail: failure.detail.clone(),
        ..found
    }
}

async fn attempt(
    config: &ControlConnection,
    (extensions, sends_addresses): (Extensions, bool),
    derivation: &Derivation,
    found: &mut ProbeServerResponse,
) -> Result<(), Failure> {
    found.stage = ProbeStage::Connect.into();
    let begun = clock::monotonic();
    let context = AttemptContext {
        deadline: begun.plus_ns(config.connect_timeout_ns),
        address: 0,
        waits_for_ports: false,
        socket_wait_ns: SOCKET_WAIT_NS,
        sends_addresses,
    };
    let names: Vec<String> = config.sessions.iter().map(|session| session.name.clone()).collect();
    let addresses = connect::resolve_server(config).await?;
    // A slow name resolution leaves at least a quarter of the time for the TCP connect.
    let left_ns = context.deadline.since_ns(clock::monotonic()).max(config.connect_timeout_ns / 4);
    let stream = connect::connect(config, &addresses, Duration::from_nanos(left_ns)).await?;
    found.connect_duration_ns = clock::monotonic().since_ns(begun);
    let (local, server) = negotiate::ends(&stream)?;
    (found.local_address, found.server_address) = (local.to_string(), server.to_string());
    let mut established = negotiate::prepare(config, &names, extensions, stream, context).await?;
    found.requested_port =
        established.sessions.first().map_or(0, |s| s.socket.local().port().into());
    let negotiated = established.negotiate(config, derivation).await;
    describe(&established, found);
    negotiated?;
    found.stage = ProbeStage::Probe.into();
    let session = established.sessions.pop();
    if let Some(session) = session {
        exchange(config, session, found).await;
    }
    established.stop().await;
    Ok(())
}

/// Describes the completed steps of the negotiation.
fn describe(established: &Established, found: &mut ProbeServerResponse) {
    let machine = established.machine();
    found.stage = match machine.stage() {
        Stage::Greeting => ProbeStage::Greeting,
        Stage::SetUp => ProbeStage::Setup,
        Stage::Request => ProbeStage::Request,
        Stage::Start | Stage::Running => ProbeStage::Start,
    }
    .into();
    if let Some(greeting) = machine.greeting() {
        let modes = Modes(greeting.modes.get());
        found.offered_modes = Some(modes.0);
        found.offered_mode_names = modes.to_string();
        found.key_derivation_count = greeting.count.get();
    }
    found.mode = machine.mode().0;
    found.mode_name = machine.mode().to_string();
    let start = machine.server_start_time();
    found.server_start_time = (start.0 != 0).then(|| start.to_unix(clock::unix()).to_proto());
    if let Some(session) = established.sessions.first() {
        found.accepted_port = session.remote.port().into();
        found.sid = session.sid.map(|sid| sid.to_string()).unwrap_or_default();
    }
}

/// Discarded packets, counted by reason; the source is that of the first packet.
#[derive(Default)]
struct Discarded(Vec<DiscardedPackets>);

impl Discarded {
    fn add(&mut self, source: SocketAddr, reason: String) {
        if let Some(known) = self.0.iter_mut().find(|known| known.reason == reason) {
            known.count = known.count.saturating_add(1);
        } else if self.0.len() < MAX_DISCARDED {
            let source_address = source.to_string();
            self.0.push(DiscardedPackets { source_address, reason, count: 1 });
        }
    }
}

/// Sends one test packet and waits for its reply.
async fn exchange(
    config: &ControlConnection,
    session: OpenSession,
    found: &mut ProbeServerResponse,
) {
    let OpenSession { socket, remote, carrier, .. } = session;
    let Some(test) = config.sessions.first() else { return };
    let mut packet = vec![0; carrier.format.probe_octets().max(test.data_size.into())];
    random::fill_padding(&mut packet);
    let mut machine = SessionSender::new(sender_config(config, test));
    let begun = clock::now();
    machine.session_started(carrier, begun.monotonic, begun);
    let now = clock::now();
    if machine.poll_probe(now).is_none() {
        return;
    }
    machine.write_probe(now.unix, clock::error_estimate(), &mut packet, now.monotonic);
    if let Err(error) = socket.send(&packet, remote) {
        found.detail = format!("the probe to {remote} was not sent: {error}");
        return;
    }
    machine.probe_sent(now.unix, 0, now);
    let end = Instant::now() + Duration::from_nanos(test.loss_timeout_ns);
    let mut discarded = Discarded::default();
    let answered = timeout_at(end, async {
        loop {
            let received = socket.receive_async(|meta, reply| {
                if (meta.source.ip(), meta.source.port()) == (remote.ip(), remote.port()) {
                    if let Some(reason) = machine.handle_reply(reply, meta, clock::now()) {
                        discarded.add(meta.source, reason.to_string());
                    }
                } else {
                    discarded.add(meta.source, format!("not from {remote}"));
                }
            });
            if received.await.is_err() {
                return None;
            }
            while let Some(event) = machine.poll_event() {
                if let SenderEvent::Probe(probe) = event
                    && probe.status() == ProbeStatus::Received
                {
                    return Some(probe);
                }
            }
        }
    });
    found.probe = answered.await.ok().flatten().map(convert::probe_result);
    found.discarded = discarded.0;
    match &found.probe {
        Some(probe) => {
            found.stage = ProbeStage::Done.into();
            found.detail = format!("a probe to {remote} was answered");
            if probe.one_way_validity() == OneWayValidity::TaiOffset {
                found.detail += &format!(
                    "; the clocks differ by {TAI_OFFSET_SECONDS} s, the offset of TAI from UTC: one end \
                     reads timestamps in TAI (PTP) as UTC"
                );
            }
        }
        None if !found.discarded.is_empty() => {
            let reasons =
                found.discarded.iter().map(|d| format!("{}: {}", d.source_address, d.reason));
            found.detail = format!(
                "control works, but the packets received after the probe of {} octets to UDP \
                 {remote} were discarded: {}",
                packet.len(),
                reasons.collect::<Vec<_>>().join("; ")
            );
        }
        None => {
            found.detail = format!(
                "control works, but no reply to the probe of {} octets to UDP {remote} arrived: \
                 check that UDP can pass in both directions",
                packet.len()
            );
        }
    }
}
