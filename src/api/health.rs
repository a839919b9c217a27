//! `grpc.health.v1`: health of the agent, the API, the store and each connection.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures_util::stream::{Stream, unfold};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus::{self, NotServing, ServiceUnknown, Serving},
    health_server::{Health, HealthServer},
};

use super::{Context, error};
use crate::supervise::Tasks;

/// Pause between two reports; changes of connections within it are reported together.
const PAUSE: Duration = Duration::from_millis(100);
/// Interval of health checks without a change of connections: damage of the store does not wake the
/// task.
const EVERY: Duration = Duration::from_millis(500);

/// Health of the store and of each connection.
#[derive(Debug, Default)]
struct Book {
    store: bool,
    connections: BTreeMap<String, bool>,
}

impl Book {
    /// Returns whether a service is healthy; `None` if it is unknown.
    fn is_well(&self, service: &str) -> Option<bool> {
        match service {
            // The API is healthy as long as it answers.
            "" | "twamp.agent.v1" => Some(true),
            "store" => Some(self.store),
            _ => self.connections.get(service.strip_prefix("client/")?).copied(),
        }
    }

    fn status(&self, service: &str) -> ServingStatus {
        match self.is_well(service) {
            Some(true) => Serving,
            Some(false) => NotServing,
            None => ServiceUnknown,
        }
    }
}

/// The health service, and the task that updates it.
pub(super) fn service(context: &Context, tasks: &Tasks) -> HealthServer<HealthService> {
    let book = watch::Sender::default();
    let (reader, token) = (book.subscribe(), context.token.clone());
    tasks.spawn("health", keep(book, context.clone()));
    HealthServer::new(HealthService { book: reader, token })
}

async fn keep(book: watch::Sender<Book>, context: Context) {
    let state = context.results.state();
    let mut changes = context.control.clients().changes();
    // The first round reads the initial state without waiting for a change.
    changes.mark_changed();
    loop {
        let store = state.borrow().detail.is_empty() && context.control.damage().is_empty();
        let changed = changes.has_changed().unwrap_or(false);
        changes.mark_unchanged();
        let connections = changed.then(|| context.control.clients().running());
        book.send_if_modified(|book| {
            let mut news = std::mem::replace(&mut book.store, store) != store;
            if let Some(connections) = connections.filter(|now| *now != book.connections) {
                book.connections = connections;
                news = true;
            }
            news
        });
        tokio::select! {
            () = sleep(EVERY) => {}
            Ok(()) = changes.changed() => {
                sleep(PAUSE).await;
                changes.mark_changed();
            }
            () = context.token.cancelled() => return,
        }
    }
}

/// Service that answers from the latest known health.
#[derive(Clone, Debug)]
pub(super) struct HealthService {
    book: watch::Receiver<Book>,
    token: CancellationToken,
}

impl HealthService {
    /// Returns the next status that differs from the last one sent.
    async fn next(
        &mut self,
        service: &str,
        sent: Option<ServingStatus>,
    ) -> Result<ServingStatus, Status> {
        loop {
            let status = self.book.borrow_and_update().status(service);
            if sent != Some(status) {
                return Ok(status);
            }
            tokio::select! {
                Ok(()) = self.book.changed() => {}
                () = self.token.cancelled() => return Err(error::ending()),
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let status = self.book.borrow().status(&service);
        if status == ServiceUnknown {
            return Err(Status::not_found(format!(
                "no service is named {service:?}: there are \"\", twamp.agent.v1, store and client/NAME"
            )));
        }
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let stream = unfold(Some((self.clone(), None)), move |watching| {
            let service = service.clone();
            async move {
                let (mut health, sent) = watching?;
                match health.next(&service, sent).await {
                    Ok(status) => {
                        let answer = HealthCheckResponse { status: status.into() };
                        Some((Ok(answer), Some((health, Some(status)))))
                    }
                    Err(ending) => Some((Err(ending), None)),
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_services_differ_from_unhealthy_ones() {
        let connections = BTreeMap::from([("c1".to_owned(), true), ("c2".to_owned(), false)]);
        let book = Book { store: false, connections };
        let statuses = ["", "twamp.agent.v1", "store", "client/c1", "client/c2", "client/c3", "c1"]
            .map(|service| book.status(service));
        let expected =
            [Serving, Serving, NotServing, Serving, NotServing, ServiceUnknown, ServiceUnknown];
        assert_eq!(statuses, expected);
    }

    #[tokio::test]
    async fn a_watcher_sees_each_change_once() {
        let book = watch::Sender::new(Book::default());
        let token = CancellationToken::new();
        let mut health = HealthService { book: book.subscribe(), token: token.clone() };
        let mut sent = None;
        for (connections, expected) in [
            (vec![], ServiceUnknown),
            (vec![("c1".to_owned(), false)], NotServing),
            (vec![("c1".to_owned(), true)], Serving),
            (vec![], ServiceUnknown),
        ] {
            book.send_modify(|book| book.connections = connections.into_iter().collect());
            let status = health.next("client/c1", sent).await.unwrap();
            assert_eq!(status, expected);
            sent = Some(status);
            // A change of another service sends no message.
            book.send_modify(|book| book.store = !book.store);
        }
        token.cancel();
        assert!(health.next("client/c1", sent).await.is_err());
    }
}
