//! What the file means: every value checked, every default filled in.

use super::codec::{self, CodecPlan};
use super::defaults;
use super::drift::{self, DriftPlan};
use super::error::ConfigError;
use super::exchange::{self, ExchangePlan};
use super::peer::{self, PeerAddr};
use super::raw::{describe, Document, Section};
use crate::manifest::Digest;
use crate::transport::tcp::Congestion;
use serde_yaml::Value;
use sha2::{Digest as _, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A configuration that holds together. Made by [`Plan::load`] and [`Plan::parse`] only.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The file it was read from; names it in later messages.
    pub origin: PathBuf,
    /// `None` when the file leaves the ranks to `tpq launch` or `RING_CONFIG`.
    pub group: Option<Group>,
    pub links: Links,
    /// Absolute, or relative to the working directory. The environment may name another one: see [`Plan::secret`].
    pub secret_file: Option<PathBuf>,
    pub codec: CodecPlan,
    /// More codecs to switch to, with a label each: for comparisons. No file sets it.
    pub alternatives: Vec<(String, CodecPlan)>,
    pub exchange: ExchangePlan,
    pub calibration: CalibrationPlan,
    pub drift: DriftPlan,
}

/// The ranks as the file lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Usually absent, so that one file serves all hosts and `TPQ_RANK` tells them apart.
    pub rank: Option<usize>,
    /// Index = rank, length = world size; 1 to [`defaults::MAX_WORLD_SIZE`], no duplicates.
    pub peers: Vec<PeerAddr>,
}

/// How links between ranks behave.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Links {
    pub insecure: bool,
    /// Data connections too, not only those with prompts.
    pub encrypt: bool,
    /// A lost rank may come back: see [`Plan::rejoins`].
    pub rejoin: Option<bool>,
    pub connect_timeout: Duration,
    /// The longest wait inside one exchange.
    pub timeout: Duration,
    /// At most half of `timeout`.
    pub heartbeat: Duration,
    pub busy_poll: Duration,
    pub congestion: Congestion,
}

#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CalibrationPlan {
    pub sequences: u64,
    /// Tokens of each sequence.
    pub tokens: u64,
    /// In (0, 1): the weight of the past.
    pub ema: f64,
    pub outliers: OutlierCount,
    pub seed: u64,
}

/// How many features of a layer stay in BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutlierCount {
    /// k = floor(E * fraction).
    Fraction(Fraction),
    Count(usize),
    /// In all layers together as many as that fraction of each: more where they lower the noise more.
    Adaptive(Fraction),
}

/// `numerator / denominator`, in `[0, 1)`. Kept exact: floor(4096 * 0.0156) is 63 where 4096/64 is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u64,
    pub denominator: u64,
}

impl Plan {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// An unreadable file, and all of [`Plan::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a configuration. `origin` names it in messages, and relative paths in it are relative to the
    /// folder of `origin`.
    ///
    /// # Errors
    /// Text that is not YAML, unknown keys, and values that are out of range or do not fit together.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        Self::read(&Document::new(origin, text), origin)
    }

    /// As [`Plan::parse`], from a table called `name` in a file of another program, whose reader has parsed it.
    pub(super) fn from_table(name: &str, table: &Value, origin: &Path) -> Result<Self, ConfigError> {
        Self::read(&Document::table(origin, name, table), origin)
    }

    fn read(document: &Document<'_>, origin: &Path) -> Result<Self, ConfigError> {
        let root = document.root(&["version", "group", "codec", "exchange", "calibration", "drift"])?;
        check_version(&root)?;
        let group = root.section(
            "group",
            &[
                "rank",
                "peers",
                "secret_file",
                "encrypt",
                "insecure",
                "rejoin",
                "connect_timeout_s",
                "timeout_s",
                "heartbeat_s",
                "busy_poll_us",
                "congestion_control",
            ],
        )?;
        let codec = codec::parse(&root.section("codec", &codec::KEYS)?, origin)?;
        Ok(Self {
            origin: origin.to_path_buf(),
            links: links(&group)?,
            secret_file: path(&group, "secret_file", "the path of a file with the secret", origin)?,
            group: ranks(&group)?,
            alternatives: Vec::new(),
            exchange: ExchangePlan::parse(&root.section("exchange", &exchange::KEYS)?, origin)?,
            calibration: calibration(
                &root.section("calibration", &["sequences", "tokens", "ema", "outliers", "seed"])?,
            )?,
            drift: DriftPlan::parse(&root.section("drift", &drift::KEYS)?, &codec, origin)?,
            codec,
        })
    }

    /// SHA-256 over all that ranks must agree on besides the manifest's content: codec, exchange and drift policy, not rank,
    /// addresses, timeouts or calibration. Equal digests mean equal decisions.
    pub fn policy_digest(&self) -> Digest {
        let codec = self.codec.policy();
        let alternatives: String = self
            .alternatives
            .iter()
            .map(|(_, codec)| format!("+{}", codec.policy()))
            .collect();
        let canonical = format!(
            "tpq policy 4\ncodec={codec}{alternatives}\n{}{}",
            self.exchange.canonical(),
            self.drift.canonical()
        );
        Digest(Sha256::digest(canonical.as_bytes()).into())
    }
}

impl OutlierCount {
    /// k for a layer of `features` features; the average over the layers where that depends on them.
    ///
    /// # Errors
    /// A fixed k that leaves no feature to quantize.
    pub fn resolve(self, layer: &str, features: usize) -> Result<usize, ConfigError> {
        match self {
            Self::Fraction(fraction) | Self::Adaptive(fraction) => Ok(fraction.floor_of(features)),
            Self::Count(k) if k < features || k == 0 => Ok(k),
            Self::Count(k) => Err(ConfigError::TooManyOutliers {
                layer: layer.to_owned(),
                k,
                features,
            }),
        }
    }
}

impl Fraction {
    /// floor(`features` * self), which is below `features` for every fraction below one.
    pub fn floor_of(self, features: usize) -> usize {
        let product = features as u128 * u128::from(self.numerator) / u128::from(self.denominator.max(1));
        usize::try_from(product).unwrap_or(features)
    }

    fn parse(value: &Value) -> Option<Self> {
        /// Six decimals are exact for 1/64 (0.015625) and every binary fraction above it.
        const DECIMALS: u64 = 1_000_000;
        let fraction = match value {
            Value::String(text) => {
                let (numerator, denominator) = text.split_once('/')?;
                Self {
                    numerator: numerator.trim().parse().ok()?,
                    denominator: denominator.trim().parse().ok()?,
                }
            }
            Value::Number(number) => {
                let number = number.as_f64().filter(|number| (0.0..1.0).contains(number))?;
                Self {
                    numerator: (number * DECIMALS as f64).round() as u64,
                    denominator: DECIMALS,
                }
            }
            _ => return None,
        };
        (fraction.denominator > 0 && fraction.numerator < fraction.denominator).then_some(fraction)
    }
}

/// A configuration file's text, of limited length.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(defaults::MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(read)?;
    if text.len() as u64 > defaults::MAX_FILE_BYTES {
        let message = format!(
            "larger than {} bytes: not a tpq configuration",
            defaults::MAX_FILE_BYTES
        );
        return Err(read(std::io::Error::other(message)));
    }
    Ok(text)
}

pub(super) fn check_version(root: &Section<'_>) -> Result<(), ConfigError> {
    match root.get("version") {
        None => Err(root.missing("version", "write `version: 1`, the format of this file")),
        Some(value) if value.as_u64() == Some(1) => Ok(()),
        Some(value) => Err(root.wrong("version", value, "1, the only format this version of tpq reads")),
    }
}

fn links(group: &Section<'_>) -> Result<Links, ConfigError> {
    let seconds = |key, limits, default: Duration| {
        Ok::<_, ConfigError>(group.seconds(key, limits)?.map_or(default, Duration::from_secs_f64))
    };
    let timeout = seconds("timeout_s", defaults::TIMEOUT_LIMITS_S, defaults::TIMEOUT)?;
    // A user who only shortens the timeout should not have to find out about the heartbeat.
    let default_heartbeat = defaults::HEARTBEAT.min(timeout / 10);
    let heartbeat = seconds("heartbeat_s", defaults::HEARTBEAT_LIMITS_S, default_heartbeat)?;
    if heartbeat > timeout / 2 {
        let expected = format!("at most half of `group.timeout_s`, which is {}", timeout.as_secs_f64());
        return Err(group.wrong_text("heartbeat_s", &heartbeat.as_secs_f64().to_string(), &expected));
    }
    let busy_poll = group.integer("busy_poll_us", 0, defaults::BUSY_POLL_LIMIT_US)?;
    Ok(Links {
        insecure: group.boolean("insecure")?.unwrap_or(false),
        encrypt: group.boolean("encrypt")?.unwrap_or(false),
        rejoin: group.boolean("rejoin")?,
        connect_timeout: seconds(
            "connect_timeout_s",
            defaults::CONNECT_TIMEOUT_LIMITS_S,
            defaults::CONNECT_TIMEOUT,
        )?,
        timeout,
        heartbeat,
        busy_poll: busy_poll.map_or(defaults::BUSY_POLL, Duration::from_micros),
        congestion: congestion(group)?,
    })
}

fn congestion(group: &Section<'_>) -> Result<Congestion, ConfigError> {
    const KEY: &str = "congestion_control";
    let Some(value) = group.get(KEY) else {
        return Ok(Congestion::default());
    };
    // The kernel's limit is 15 bytes.
    let is_name = |name: &&str| (1..16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    match value.as_str().filter(is_name) {
        Some(name) => Ok(Congestion::from_name(name)),
        None => Err(group.wrong(KEY, value, "auto, system, or a name such as cubic")),
    }
}

fn ranks(group: &Section<'_>) -> Result<Option<Group>, ConfigError> {
    let rank = group
        .integer("rank", 0, defaults::MAX_WORLD_SIZE as u64 - 1)?
        .map(|rank| rank as usize);
    let items = match group.get("peers") {
        Some(Value::Sequence(items)) if (1..=defaults::MAX_WORLD_SIZE).contains(&items.len()) => items,
        Some(other) => {
            let expected = format!(
                "a list of 1 to {} addresses, one for each rank",
                defaults::MAX_WORLD_SIZE
            );
            return Err(group.wrong("peers", other, &expected));
        }
        None if rank.is_some() => {
            return Err(group.missing(
                "peers",
                "`group.rank` means nothing without the list of all ranks' addresses",
            ))
        }
        None => return Ok(None),
    };
    let mut peers: Vec<PeerAddr> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let key = format!("peers[{index}]");
        let peer: PeerAddr = item
            .as_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| group.wrong(&key, item, peer::EXPECTED))?;
        if let Some(first) = peers.iter().position(|other| *other == peer) {
            let expected = format!("an address of its own: rank {first} has the same");
            return Err(group.wrong(&key, item, &expected));
        }
        peers.push(peer);
    }
    match rank {
        Some(rank) if rank >= peers.len() => {
            let expected = format!("below the world size {}, the length of `group.peers`", peers.len());
            Err(group.wrong_text("rank", &rank.to_string(), &expected))
        }
        _ => Ok(Some(Group { rank, peers })),
    }
}

/// A path in the file is relative to the file's folder.
pub(super) fn path(
    section: &Section<'_>,
    key: &str,
    expected: &str,
    origin: &Path,
) -> Result<Option<PathBuf>, ConfigError> {
    match section.get(key) {
        None => Ok(None),
        Some(Value::String(path)) if !path.is_empty() => Ok(Some(origin.parent().unwrap_or(Path::new("")).join(path))),
        Some(other) => Err(section.wrong(key, other, expected)),
    }
}

fn calibration(section: &Section<'_>) -> Result<CalibrationPlan, ConfigError> {
    let ema = match section.get("ema") {
        None => defaults::CALIBRATION_EMA,
        Some(value) => match value.as_f64().filter(|ema| *ema > 0.0 && *ema < 1.0) {
            Some(ema) => ema,
            None => return Err(section.wrong("ema", value, "a number above 0 and below 1, such as 0.99")),
        },
    };
    let sequences = section.integer("sequences", 1, defaults::CALIBRATION_SEQUENCES_LIMIT)?;
    let tokens = section.integer("tokens", 1, defaults::CALIBRATION_TOKENS_LIMIT)?;
    Ok(CalibrationPlan {
        sequences: sequences.unwrap_or(defaults::CALIBRATION_SEQUENCES),
        tokens: tokens.unwrap_or(defaults::CALIBRATION_TOKENS),
        ema,
        outliers: outliers(section)?,
        seed: section.integer("seed", 0, u64::MAX)?.unwrap_or(0),
    })
}

fn outliers(calibration: &Section<'_>) -> Result<OutlierCount, ConfigError> {
    let (numerator, denominator) = defaults::OUTLIER_FRACTION;
    let default = Fraction { numerator, denominator };
    match calibration.get("outliers") {
        Some(Value::String(word)) if word == "adaptive" => return Ok(OutlierCount::Adaptive(default)),
        Some(other @ Value::String(_)) => {
            return Err(calibration.wrong("outliers", other, "adaptive, or keys: fraction, k"))
        }
        _ => {}
    }
    let section = calibration.section("outliers", &["fraction", "k"])?;
    let k = section.integer("k", 0, defaults::MAX_FEATURES as u64 - 1)?;
    match (section.get("fraction"), k) {
        (Some(fraction), Some(k)) => {
            let both = format!("{k}, and `calibration.outliers.fraction` is {}", describe(fraction));
            Err(section.wrong_text("k", &both, "one of the two"))
        }
        (None, Some(k)) => Ok(OutlierCount::Count(k as usize)),
        (Some(value), None) => Fraction::parse(value).map(OutlierCount::Fraction).ok_or_else(|| {
            section.wrong(
                "fraction",
                value,
                "at least 0 and below 1, such as \"1/64\" or 0.015625",
            )
        }),
        (None, None) => Ok(OutlierCount::Fraction(default)),
    }
}
