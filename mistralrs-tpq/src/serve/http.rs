//! The HTTP side of rank 0.

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{header, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use mistralrs_server_core::mistralrs_server_router_builder::MistralRsServerRouterBuilder;
use mistralrs_server_core::types::SharedMistralRsState;
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};

use super::metrics::{self, Requests};
use crate::engine::Node;
use crate::report::prometheus;

/// How long open streams may go on after a signal.
const DRAIN: Duration = Duration::from_secs(5);
/// For the ranks to tell each other of the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// As a shell reports a process that SIGTERM ended.
const TERMINATED: i32 = 128 + 15;

pub(super) async fn bind(ip: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind((ip, port))
        .await
        .with_context(|| format!("cannot serve on {ip}:{port} (--serve-ip, --port)"))
}

/// Serves until SIGINT or SIGTERM, then ends the group in good order.
pub(super) async fn serve(listener: TcpListener, engine: SharedMistralRsState, node: Option<Arc<Node>>) -> Result<()> {
    let router = MistralRsServerRouterBuilder::new()
        .with_mistralrs(engine)
        .build()
        .await?;
    let router = behind_front(router, node.clone());
    let address = listener.local_addr()?;
    tracing::info!("OpenAI-compatible server listening on http://{address}");
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = stop.clone();
    let stopping = stop_signal();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopped.notified().await });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        outcome = &mut server => outcome??,
        () = stopping => (),
    }
    stop.notify_one();
    if tokio::time::timeout(DRAIN, server).await.is_err() {
        tracing::warn!("open streams were cut off after {} s", DRAIN.as_secs());
    }
    if let Some(node) = node {
        node.shutdown();
    }
    Ok(())
}

/// Waits for SIGINT or SIGTERM, from the call on and not only from the first poll: before the server answers anybody. Where no
/// handler can be set it never ends, and the signal ends the process.
pub fn stop_signal() -> impl Future<Output = ()> {
    let wait = |kind| {
        let stream = signal(kind);
        async move {
            match stream {
                Ok(mut stream) => {
                    stream.recv().await;
                }
                Err(error) => {
                    tracing::warn!("no handler for a signal: {error}");
                    std::future::pending::<()>().await;
                }
            }
        }
    };
    let (interrupt, terminate) = (wait(SignalKind::interrupt()), wait(SignalKind::terminate()));
    async move {
        tokio::select! {
            () = interrupt => (),
            () = terminate => (),
        }
    }
}

/// Ranks other than 0, told to stop: rank 0 was most likely told too, and ends the group when its streams are done. It gets the
/// time for that; then this process ends as the signal says.
pub fn outlast_rank_0() {
    // The engine's runtime is blocked while the engine runs on this rank.
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            // In the runtime's context, which a handler needs.
            Ok(runtime) => runtime.block_on(async { stop_signal().await }),
            // Without a handler the signal ends the process.
            Err(error) => return tracing::warn!("no handler for signals: {error}"),
        }
        std::thread::sleep(DRAIN + FAREWELL);
        std::process::exit(TERMINATED);
    };
    if let Err(error) = std::thread::Builder::new().name("tpq-stop".to_owned()).spawn(wait) {
        tracing::warn!("no thread that waits for signals: {error}");
    }
}

/// For a server of another crate: `/metrics`, and 503 with the reason on `/health` while the group cannot serve.
pub fn behind_front(router: axum::Router, node: Option<Arc<Node>>) -> axum::Router {
    router.layer(axum::middleware::from_fn_with_state(Front::new(node), front))
}

/// What stands before the engine's own routes.
#[derive(Debug, Clone)]
struct Front {
    node: Option<Arc<Node>>,
    requests: Arc<Requests>,
}

impl Front {
    fn new(node: Option<Arc<Node>>) -> Self {
        Self {
            node,
            requests: Arc::default(),
        }
    }

    /// The answer that needs no engine, if this request has one.
    fn answer(&self, request: &Request) -> Option<Response> {
        let health = super::health(self.node.as_ref());
        match (request.uri().path(), health) {
            ("/metrics", _) => {
                let page = metrics::page(self.node.as_deref(), &self.requests);
                Some(([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], page).into_response())
            }
            ("/health", Err(reason)) => Some((StatusCode::SERVICE_UNAVAILABLE, reason).into_response()),
            // It would only find out in its first exchange, and wait for the requests before it to do so.
            (_, Err(reason)) if request.method() == Method::POST => Some(error(StatusCode::SERVICE_UNAVAILABLE, &reason)),
            // A rank that came back would load the weights as the command line says, and differ.
            ("/re_isq", Ok(())) if self.node.as_ref().is_some_and(|node| node.rejoins()) => Some(error(
                StatusCode::BAD_REQUEST,
                "re-quantization is not supported where lost ranks may come back (group.rejoin): use --isq at the start",
            )),
            _ => None,
        }
    }
}

/// In the form of the engine's own errors.
fn error(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "message": message }))).into_response()
}

/// `/metrics`, `/health` (503 with the reason while the group cannot serve), and refusals; everything else passes, counted.
async fn front(State(front): State<Front>, request: Request, next: Next) -> Response {
    if let Some(answer) = front.answer(&request) {
        return answer;
    }
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let open = front.requests.start();
    let response = next.run(request).await;
    front.requests.answered(response.status().as_u16());
    response.map(|body| {
        let pieces = body.into_data_stream().map(move |piece| {
            let _until_the_body_ends = &open;
            piece
        });
        Body::from_stream(pieces)
    })
}
