//! A program on the `mistralrs` crate, made tensor-parallel over ordinary links by the two marked lines.
//!
//! Two ranks on this host, each a process of this program:
//!
//! ```text
//! cargo build --release -p mistralrs-tpq -p embed
//! target/release/tpq launch -n 2 -- target/release/embed examples/demo-model "//! This crate provides" configs/dynamic.yaml
//! ```
//! Without the last argument it is one process, as it was before.

use anyhow::{bail, Context, Result};
use mistralrs::{ModelDType, RequestBuilder, TextMessageRole, TextModelBuilder};

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(prompt), config) = (args.next(), args.next(), args.next()) else {
        bail!("usage: embed MODEL PROMPT [TPQ.YAML]");
    };

    // 1. Before any model is loaded, on every rank.
    let group = config
        .map(|config| mistralrs_tpq::install(config.as_ref()))
        .transpose()?
        .flatten();

    // Ranks other than 0 stay in `build` and end with the group.
    let model = TextModelBuilder::new(model)
        .with_force_cpu()
        .with_dtype(ModelDType::F32)
        .build()
        .await?;
    let request = RequestBuilder::new()
        .add_message(TextMessageRole::User, prompt)
        .set_deterministic_sampler()
        .set_sampler_max_len(32);
    let answer = model.send_chat_request(request).await?;
    println!("{}", answer.choices[0].message.content.as_deref().context("no text")?);

    // 2. Lets the other ranks end, too.
    if let Some(group) = group {
        group.shutdown();
    }
    Ok(())
}
