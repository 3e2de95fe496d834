//! `tpq bench exchange`.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::dtype;
#[cfg(feature = "cuda")]
use crate::bench::device_exchange::Gpu;
use crate::bench::exchange::{self, Effort};
use crate::bench::{table, Case, Row};
use crate::cli::args::Global;
use crate::cli::{emit, CliError};
use crate::codec::{CodecKind, Dtype};
use crate::config::{self, environment_secret, Environment, PEERS_VARIABLE, RANK_VARIABLE};
#[cfg(feature = "cuda")]
use crate::cuda::GpuLink;
use crate::exchange::{Algorithm, ExchangeConfig, Gate, GatherBits};
use crate::report::plot::{plot, Axes, Mark, Series};
use crate::report::{Align, Table};
use crate::transport::tcp::{Congestion, MeshConfig, Secret, TcpMesh};
use crate::transport::Transport;
use crate::wire::Identity;

/// Time all-reduces by size, algorithm and codec, every result checked
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq bench exchange -n 4                                  (four ranks as threads, over loopback TCP)
  tpq bench exchange -n 4 --write-table link.yaml --plot time.svg
  tpq bench exchange -n 4 --encrypt                        (what `group.encrypt` costs here: compare with a run without)
  TPQ_RANK=0 TPQ_PEERS=10.0.0.1:7700,10.0.0.2:7700 tpq bench exchange --insecure   (the same on each host, with its rank)
  TPQ_RANK=0 TPQ_PEERS=127.0.0.1:7700,127.0.0.1:7701 tpq bench exchange --device cuda --write-table gpu.yaml
  TPQ_RANK=0 TPQ_PEERS=127.0.0.1:7700,127.0.0.1:7701 tpq bench exchange --device cuda --graph

Columns: bytes are those of the raw message; sent is what the busiest rank sends; times are of the slowest rank; algbw is raw
bytes by time, busbw = algbw x 2(N-1)/N, both in Gbit/s; wrong counts elements outside the codec's bound, and with --device
cuda those with other bits than on processors. With --json a line is
one row: ranks, tokens, features, dtype, codec, algorithm, bytes_sent_per_rank, bits_per_value, us_median, us_p99, algbw_gbps,
busbw_gbps, wrong. The exit code is 1 when anything was wrong.")]
pub struct ExchangeArgs {
    /// Ranks, as threads of this process over loopback TCP, 2 to 64
    #[arg(short = 'n', long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=64))]
    ranks: u16,
    /// This process is one rank of `--peers`
    #[arg(long, value_name = "R", env = RANK_VARIABLE, requires = "peers")]
    rank: Option<usize>,
    /// host:port of every rank, separated by commas
    #[arg(long, value_name = "LIST", env = PEERS_VARIABLE, value_delimiter = ',', requires = "rank")]
    peers: Vec<String>,
    /// Allow peers beyond loopback, without authentication. Only test data travels.
    #[arg(long)]
    insecure: bool,
    /// Encrypt what ranks send, to see what that costs. With --rank, the secret comes from TPQ_SECRET or TPQ_SECRET_FILE
    #[arg(long)]
    encrypt: bool,
    /// Smallest message. Bytes, powers of two times a row
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    min_bytes: u64,
    /// Largest message. Bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    max_bytes: u64,
    /// Size of a message by that of the one before
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(2..))]
    factor: u64,
    /// Values of a row (the hidden size); messages smaller than a row are one shorter row
    #[arg(long, value_name = "E", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    features: u32,
    #[arg(long, value_name = "DTYPE", default_value = "bf16", value_parser = ["f32", "bf16", "f16"])]
    dtype: String,
    /// Codecs, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        default_value = "none,paper,dynamic",
        value_delimiter = ','
    )]
    codec: Vec<String>,
    /// Algorithms, separated by commas. Raw values (codec none) always go as `lossless` and `auto` do.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "one_shot,two_shot,ring,doubling",
        value_delimiter = ','
    )]
    algorithm: Vec<String>,
    /// Bits of a code in the second stage, 4 or 8
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=8))]
    gather_bits: u32,
    /// Seconds for each row
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    seconds: f64,
    /// How long a rank tries again before it sleeps. Microseconds
    #[arg(long, value_name = "US", default_value_t = 20)]
    busy_poll_us: u64,
    /// As `group.congestion_control` in tpq.yaml: auto, system, or a name such as cubic
    #[arg(long, value_name = "NAME", default_value = "auto")]
    congestion_control: String,
    /// Where the partial sums are: cpu, or cuda (a build with that feature), each rank a process of its own
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// With --device cuda, the GPU: its number among the visible ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: usize,
    /// With --device cuda, what carries payloads, as `exchange.gpu_link`: auto, peer, nccl, tcp, host
    #[arg(long, value_name = "LINK", default_value = "auto", value_parser = ["auto", "peer", "nccl", "tcp", "host"])]
    gpu_link: String,
    /// With --device cuda, capture the exchanges into CUDA graphs and measure those, as engines run their decode steps: without
    /// the time that the processor takes to submit them. Over peer and nccl
    #[arg(long)]
    graph: bool,
    /// Also draw time against size as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Also write what the link costs, for `exchange.table` in tpq.yaml
    #[arg(long, value_name = "FILE")]
    write_table: Option<PathBuf>,
}

pub(super) fn run(args: &ExchangeArgs, global: &Global) -> Result<u8, CliError> {
    let cases = args.cases()?;
    // Now, and not after minutes of measuring.
    for path in [&args.plot, &args.write_table].into_iter().flatten() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(CliError::io(
                format!("cannot write to the folder {}", folder.display()),
                missing,
            ));
        }
    }
    if args.graph && args.device == "cpu" {
        return Err(CliError::Usage("--graph needs --device cuda".to_owned()));
    }
    if args.device != "cpu" && args.rank.is_none() {
        return Err(CliError::Usage(
            "with --device cuda each rank is a process of its own: give each --rank and --peers".to_owned(),
        ));
    }
    let rows = match args.rank {
        Some(rank) => {
            let secret = environment_secret(&Environment::from_process())?;
            let place = (rank, args.peers.clone());
            measure(&args.join(place, None, secret)?, &cases, args, global)?
        }
        None => on_threads(args, &cases, global)?,
    };
    if rows.is_empty() {
        return Ok(0);
    }
    if !global.json {
        emit(&exchange_table(&rows).to_string())?;
    }
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|error| CliError::io(format!("cannot write {}", path.display()), error))
    };
    if let Some(path) = &args.plot {
        write(path, drawing(&rows)?)?;
    }
    if let Some(path) = &args.write_table {
        let fitted = table::fit(&fitting(&rows)).context(
            "the measured times do not tell latency and rate apart: measure more sizes (--min-bytes, --max-bytes)",
        )?;
        // Where the processor encodes, `min_bytes` is the user's to set.
        let gate = if args.device == "cpu" {
            Gate::default()
        } else {
            table::gate(&rows)
        };
        write(path, config::table_text(&fitted, &gate))?;
    }
    let wrong: u64 = rows.iter().map(|row| row.wrong).sum();
    Ok(u8::from(wrong > 0))
}

/// Rows that the table is fitted to: all that ran what they are named after.
fn fitting(rows: &[Row]) -> Vec<Row> {
    let named = |row: &&Row| !matches!(row.algorithm.as_str(), "auto" | "lossless");
    rows.iter().filter(named).cloned().collect()
}

fn on_threads(args: &ExchangeArgs, cases: &[Case], global: &Global) -> Result<Vec<Row>, CliError> {
    let listen = |_| TcpListener::bind("127.0.0.1:0");
    let listeners: Vec<_> = (0..args.ranks)
        .map(listen)
        .collect::<Result<_, _>>()
        .map_err(|error| CliError::io("cannot listen on 127.0.0.1", error))?;
    let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
    let peers: Vec<String> = listeners
        .iter()
        .map(address)
        .collect::<Result<_, _>>()
        .map_err(|error| CliError::io("cannot read a local address", error))?;
    // Nobody else has to know it.
    // As text: of raw bytes those at the ends that are white space would be taken off, and the rest be too short.
    let secret = || Secret::new(format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()).as_bytes());
    let secret = args.encrypt.then(secret);
    let secret = secret.transpose().map_err(anyhow::Error::from)?;
    std::thread::scope(|scope| {
        let start = |(rank, listener)| {
            let (place, secret) = ((rank, peers.clone()), secret.clone());
            scope.spawn(move || measure(&args.join(place, Some(listener), secret)?, cases, args, global))
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(start).collect();
        let mut rows = Vec::new();
        for thread in threads {
            let result = thread.join().map_err(|_| anyhow::anyhow!("a rank's thread panicked"))?;
            rows.extend(result?);
        }
        Ok(rows)
    })
}

/// Runs all cases as this rank. With --json, rank 0 prints each row as it comes.
fn measure(
    transport: &Arc<dyn Transport>,
    cases: &[Case],
    args: &ExchangeArgs,
    global: &Global,
) -> Result<Vec<Row>, CliError> {
    let effort = Effort {
        per_case: Duration::from_secs_f64(args.seconds),
        ..Effort::default()
    };
    let base = ExchangeConfig {
        gather_bits: args.gather_bits()?,
        ..ExchangeConfig::default()
    };
    let mut place = Subject::open(args, transport, base)?;
    let mut rows = Vec::new();
    for case in cases {
        let Some(row) = place.run(transport, *case, base, effort)? else {
            continue;
        };
        if global.json {
            emit(&(serde_json::to_string(&row).map_err(anyhow::Error::from)? + "\n"))?;
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Where the exchanges run.
enum Subject {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Box<Gpu>),
}

impl Subject {
    fn open(args: &ExchangeArgs, transport: &Arc<dyn Transport>, base: ExchangeConfig) -> Result<Self, CliError> {
        if args.device == "cpu" {
            return Ok(Self::Cpu);
        }
        #[cfg(feature = "cuda")]
        {
            let link = GpuLink::from_name(&args.gpu_link);
            let gpu = Gpu::join(&**transport, args.gpu, (link.unwrap_or_default(), args.graph), base)?;
            Ok(Self::Cuda(Box::new(gpu)))
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (transport, base, args.gpu, &args.gpu_link, args.graph);
            Err(super::without_cuda())
        }
    }

    fn run(
        &mut self,
        transport: &Arc<dyn Transport>,
        case: Case,
        base: ExchangeConfig,
        effort: Effort,
    ) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Cpu => exchange::run(transport, case, base, effort),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.run(transport, case, base, effort),
        }
    }
}

impl ExchangeArgs {
    fn join(
        &self,
        (rank, peers): (usize, Vec<String>),
        listener: Option<TcpListener>,
        secret: Option<Secret>,
    ) -> Result<Arc<dyn Transport>, CliError> {
        let identity = Identity {
            dtype: dtype(&self.dtype)?,
            model: [0; 32],
            manifest: [0; 32],
            codec: self.codec.join(","),
            // What the cases follow from: ranks with other arguments would wait for each other.
            policy: format!(
                "bench {} {} {} {} {} {} {}",
                self.min_bytes,
                self.max_bytes,
                self.factor,
                self.features,
                self.algorithm.join(","),
                self.gather_bits,
                self.graph
            ),
        };
        let config = MeshConfig {
            insecure: self.insecure,
            encrypt: self.encrypt,
            secret,
            busy_poll: Duration::from_micros(self.busy_poll_us),
            congestion: Congestion::from_name(&self.congestion_control),
            ..MeshConfig::new(rank, peers, identity)
        };
        let mesh = match listener {
            Some(listener) => TcpMesh::connect_on(listener, config),
            None => TcpMesh::connect(config),
        };
        Ok(Arc::new(mesh.map_err(anyhow::Error::from)?))
    }

    fn gather_bits(&self) -> Result<GatherBits, CliError> {
        match self.gather_bits {
            4 => Ok(GatherBits::Four),
            8 => Ok(GatherBits::Eight),
            other => Err(CliError::Usage(format!("--gather-bits is {other}, expected 4 or 8"))),
        }
    }

    fn cases(&self) -> Result<Vec<Case>, CliError> {
        let dtype = dtype(&self.dtype)?;
        let gather_bits = self.gather_bits()?;
        if !(0.0..=3600.0).contains(&self.seconds) || self.max_bytes > 256 << 20 {
            return Err(CliError::Usage(
                "expected --seconds from 0 to 3600 and --max-bytes up to 268435456".to_owned(),
            ));
        }
        let algorithms = all(&self.algorithm, "algorithm", Algorithm::from_name)?;
        let kinds = all(&self.codec, "codec", CodecKind::from_name)?;
        let mut cases = Vec::new();
        let mut bytes = self.min_bytes.max(dtype.size() as u64);
        while bytes <= self.max_bytes {
            let values = (bytes / dtype.size() as u64) as usize;
            let features = values.min(self.features as usize);
            for codec in &kinds {
                let raw = [Algorithm::Lossless];
                for algorithm in if *codec == CodecKind::None {
                    &raw[..]
                } else {
                    &algorithms
                } {
                    cases.push(Case {
                        tokens: values / features,
                        features,
                        dtype,
                        codec: *codec,
                        algorithm: *algorithm,
                        gather_bits,
                    });
                }
            }
            bytes *= self.factor;
        }
        if cases.is_empty() {
            let (least, most, dtype) = (self.min_bytes, self.max_bytes, dtype.name());
            return Err(CliError::Usage(format!(
                "nothing to measure: no message of {dtype} has --min-bytes {least} to --max-bytes {most}"
            )));
        }
        Ok(cases)
    }
}

fn all<T>(names: &[String], what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, CliError> {
    let one = |name: &String| parse(name).ok_or_else(|| CliError::Usage(format!("there is no {what} `{name}`")));
    names.iter().map(one).collect()
}

fn raw_bytes(row: &Row) -> usize {
    let size = dtype(&row.dtype).map_or(1, Dtype::size);
    row.tokens * row.features * size
}

fn exchange_table(rows: &[Row]) -> Table {
    let left = ["dtype", "codec", "algorithm"].map(|heading| (heading, Align::Left));
    let numbers = [
        "sent",
        "bits/value",
        "median (us)",
        "p99 (us)",
        "algbw (Gbit/s)",
        "busbw (Gbit/s)",
        "wrong",
    ];
    let right = numbers.map(|heading| (heading, Align::Right));
    let mut table = Table::new(
        [("bytes", Align::Right), ("tokens", Align::Right)]
            .into_iter()
            .chain(left)
            .chain(right),
    );
    for row in rows {
        table.row([
            raw_bytes(row).to_string(),
            row.tokens.to_string(),
            row.dtype.clone(),
            row.codec.clone(),
            row.algorithm.clone(),
            row.bytes_sent_per_rank.to_string(),
            format!("{:.3}", row.bits_per_value),
            format!("{:.1}", row.us_median),
            format!("{:.1}", row.us_p99),
            format!("{:.3}", row.algbw_gbps),
            format!("{:.3}", row.busbw_gbps),
            row.wrong.to_string(),
        ]);
    }
    table
}

/// One line for each codec and algorithm; where two cross, the faster one changes.
fn drawing(rows: &[Row]) -> Result<String, CliError> {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let name = format!("{} {}", row.codec, row.algorithm);
        let point = ((raw_bytes(row).max(1) as f64).log2(), row.us_median);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                mark: Mark::Line,
                points: vec![point],
            }),
        }
    }
    let ranks = rows.first().map_or(0, |row| row.ranks);
    let axes = Axes {
        title: format!("all-reduce over {ranks} ranks"),
        x: "message, log2 of bytes".to_owned(),
        y: "median time (us)".to_owned(),
        log_y: true,
    };
    Ok(plot(&axes, &series)?)
}
