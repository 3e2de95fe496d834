//! mistral.rs inside your own program, tensor-parallel over ordinary links: one line more than without.
//!
//! Two ranks on this host, each a process of this program:
//!
//! ```text
//! cargo build -p mistralrs-tpq --bins --example embed
//! target/debug/tpq launch -n 2 -- target/debug/examples/embed configs/dynamic.yaml examples/demo-model "/// Returns the"
//! ```

use anyhow::{bail, Context, Result};
use mistralrs_core::{NormalRequest, Request, RequestMessage, Response, SamplingParams};
use mistralrs_server_core::mistralrs_for_server_builder::MistralRsForServerBuilder;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(config), Some(model), Some(prompt)) = (args.next(), args.next(), args.next()) else {
        bail!("usage: embed TPQ.YAML MODEL PROMPT");
    };
    // The one line. Before any model is loaded, on every rank.
    let node = mistralrs_tpq::install(config.as_ref())?;

    let runtime = tokio::runtime::Runtime::new()?;
    let answer = runtime.block_on(async {
        let selected = serde_json::json!({ "Plain": { "model_id": model, "dtype": "f32" } });
        let builder = MistralRsForServerBuilder::new()
            .with_model(serde_json::from_value(selected)?)
            .with_cpu(true);
        // Ranks other than 0 stay in here and end with the group.
        let engine = builder.build().await?;

        let (response, mut answers) = tokio::sync::mpsc::channel(16);
        let message = RequestMessage::Completion {
            text: prompt,
            echo_prompt: true,
            best_of: None,
        };
        let sampling = SamplingParams {
            max_len: Some(32),
            ..SamplingParams::deterministic()
        };
        let request = NormalRequest::new_simple(message, sampling, response, 0, None, None);
        let sender = engine.get_sender(None).map_err(|error| anyhow::anyhow!("{error}"))?;
        sender
            .send(Request::Normal(Box::new(request)))
            .await
            .map_err(|_| anyhow::anyhow!("the engine has stopped"))?;
        match answers.recv().await.context("no answer")? {
            Response::CompletionDone(done) => Ok(done.choices[0].text.clone()),
            Response::CompletionModelError(error, _) => bail!("{error}"),
            _ => bail!("the engine answered a completion with something else"),
        }
    })?;
    println!("{answer}");
    if let Some(node) = node {
        node.shutdown();
    }
    Ok(())
}
