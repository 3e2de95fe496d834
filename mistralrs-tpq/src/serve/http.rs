//! The HTTP side of rank 0.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mistralrs_server_core::mistralrs_server_router_builder::MistralRsServerRouterBuilder;
use mistralrs_server_core::types::SharedMistralRsState;
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};

use crate::engine::Node;

/// How long open streams may go on after a signal.
const DRAIN: Duration = Duration::from_secs(5);

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
        .await?
        .layer(axum::middleware::from_fn_with_state(node.clone(), report_health));
    let address = listener.local_addr()?;
    tracing::info!("OpenAI-compatible server listening on http://{address}");
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = stop.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopped.notified().await });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        outcome = &mut server => outcome??,
        () = stop_signal() => (),
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

/// Waits for SIGINT or SIGTERM. Where no handler can be set it never ends, and the signal ends the process.
pub async fn stop_signal() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            Err(error) => {
                tracing::warn!("no handler for a signal: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => (),
        () = wait(SignalKind::terminate()) => (),
    }
}

/// For a server of another crate: its `/health` answers 503 with the reason while `node`'s group cannot serve.
pub fn with_health(router: axum::Router, node: Arc<Node>) -> axum::Router {
    router.layer(axum::middleware::from_fn_with_state(Some(node), report_health))
}

/// `/health` answers 503 with the reason while the group cannot serve; everything else passes.
async fn report_health(State(node): State<Option<Arc<Node>>>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/health" {
        if let Err(reason) = super::health(node.as_ref()) {
            return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
        }
    }
    next.run(request).await
}
