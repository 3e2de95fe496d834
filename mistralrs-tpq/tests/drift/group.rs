//! A group of ranks as threads that exchange synthetic partial sums, watched as the engine's are.

use std::path::Path;
use std::sync::Arc;

use mistralrs_tpq::calibrate::{LayerStatistics, RangeObserver, Selection};
use mistralrs_tpq::codec::{Dtype, Values, ValuesMut};
use mistralrs_tpq::config::{OutlierCount, Plan};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::manifest::{Digest, Header, Manifest};
use mistralrs_tpq::monitor::{DriftCommand, DriftReply, Monitor, Peers, Status};
use mistralrs_tpq::transport::{memory, Patience, Transport};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const FEATURES: usize = 64;
pub const LAYERS: [&str; 6] = [
    "l.0.attn.o_proj",
    "l.0.mlp.down_proj",
    "l.1.attn.o_proj",
    "l.1.mlp.down_proj",
    "l.2.attn.o_proj",
    "l.2.mlp.down_proj",
];
const CALIBRATION: (u64, u64) = (24, 128);
const PATIENCE: Patience = Patience::Total(Duration::from_secs(30));

/// What partial sums look like: features that are loud in one are not in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain(pub u64);

/// `tokens` of a domain at once; the seed makes them differ from other steps.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Step {
    pub domain: Domain,
    pub tokens: usize,
    pub seed: u64,
}

/// What rank 0 says to the others.
#[derive(Serialize, Deserialize)]
enum Message {
    Drift(DriftCommand),
    Step(Step),
    Reform,
    End,
}

/// What one rank saw.
#[derive(Debug, Default)]
pub struct Rank {
    /// By step: the sums of all layers.
    pub sums: Vec<Vec<u32>>,
    /// By step, rank 0 only: error of the sums over their energy.
    pub errors: Vec<f64>,
    /// By step, rank 0 only.
    pub status: Vec<Status>,
    /// At the end.
    pub manifest: Option<Digest>,
    pub failure: Option<String>,
}

pub struct Group {
    pub ranks: usize,
    pub plan: Plan,
    pub manifest: Manifest,
    /// This rank's sum of this step is changed behind the codec's back.
    pub tampered: Option<(usize, usize)>,
    /// Before these steps the group is formed anew.
    pub reforms: Vec<usize>,
}

impl Group {
    /// Calibrated on `domain`.
    pub fn new(ranks: usize, codec: &str, drift: &str, domain: Domain) -> Self {
        let text = format!("version: 1\ncodec: {codec}\ndrift: {drift}\n");
        Self {
            ranks,
            plan: Plan::parse(&text, Path::new("tpq.yaml")).unwrap(),
            manifest: calibrate(ranks, domain),
            tampered: None,
            reforms: Vec::new(),
        }
    }

    /// Runs `steps` on every rank, and checks that all ranks ended each of them with the same bits.
    pub fn run(&self, steps: &[Step]) -> Vec<Rank> {
        let group: Vec<Arc<dyn Transport>> = memory::group(self.ranks)
            .into_iter()
            .map(|transport| Arc::new(transport) as Arc<dyn Transport>)
            .collect();
        let ranks: Vec<Rank> = std::thread::scope(|scope| {
            let threads: Vec<_> = group
                .iter()
                .enumerate()
                .map(|(rank, transport)| {
                    scope.spawn(move || match rank {
                        0 => self.lead(transport, steps),
                        _ => self.follow(transport),
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        if self.tampered.is_none() {
            for (rank, other) in ranks.iter().enumerate().skip(1) {
                assert_eq!(other.failure, None, "rank {rank}");
                assert!(
                    other.sums == ranks[0].sums,
                    "rank {rank} ended with other sums than rank 0"
                );
                assert_eq!(other.manifest, ranks[0].manifest, "rank {rank}");
            }
        }
        ranks
    }

    fn member(&self, rank: usize, transport: &Arc<dyn Transport>) -> Member<'_> {
        let drift = &self.plan.drift;
        let monitor = Monitor::new(drift, &self.plan.codec, Some(&self.manifest), 0.99, rank);
        Member {
            group: self,
            rank,
            monitor: monitor.expect("a calibrated codec is watched"),
            communicator: Communicator::new(transport.clone(), ExchangeConfig::default()),
            seen: Rank::default(),
        }
    }

    fn lead(&self, transport: &Arc<dyn Transport>, steps: &[Step]) -> Rank {
        let mut member = self.member(0, transport);
        let others = Others(transport.as_ref());
        for (index, step) in steps.iter().enumerate() {
            if self.reforms.contains(&index) {
                others.send(&Message::Reform);
                member.monitor.reset();
            }
            if let Err(error) = member.monitor.before_step(&others) {
                member.seen.failure = Some(format!("{error:#}"));
                break;
            }
            others.send(&Message::Step(*step));
            member.step(step);
            member.seen.status.push(member.monitor.status());
        }
        others.send(&Message::End);
        member.finish()
    }

    fn follow(&self, transport: &Arc<dyn Transport>) -> Rank {
        let mut member = self.member(transport.rank(), transport);
        loop {
            let message = transport.recv_message(0, PATIENCE).unwrap();
            match serde_json::from_slice(&message).unwrap() {
                Message::Drift(command) => match member.monitor.obey(&command) {
                    Ok(Some(reply)) => transport.send_message(0, &serde_json::to_vec(&reply).unwrap()).unwrap(),
                    Ok(None) => {}
                    Err(error) => member.seen.failure = Some(format!("{error:#}")),
                },
                Message::Step(step) => member.step(&step),
                Message::Reform => member.monitor.reset(),
                Message::End => return member.finish(),
            }
        }
    }
}

struct Member<'a> {
    group: &'a Group,
    rank: usize,
    monitor: Monitor,
    communicator: Communicator,
    seen: Rank,
}

impl Member<'_> {
    fn step(&mut self, step: &Step) {
        let (mut sums, mut error, mut energy) = (Vec::new(), 0.0, 0.0);
        for (index, layer) in LAYERS.iter().enumerate() {
            let site = Site {
                id: index as u32,
                name: (*layer).into(),
            };
            let input = partial_sum(step, index, self.rank);
            let mut sum = vec![0.0; input.len()];
            let monitor = self.monitor.site(layer, FEATURES).unwrap();
            let monitor = monitor.expect("no group is off");
            let (codec, values) = (monitor.codec(), Values::F32(&input));
            let stats = self
                .communicator
                .all_reduce(&site, codec.as_ref(), values, ValuesMut::F32(&mut sum))
                .unwrap();
            if self.group.tampered == Some((self.rank, self.seen.sums.len())) {
                sum[0] += 1.0;
            }
            monitor.exchanged(values, Values::F32(&sum), stats.clipped).unwrap();
            if self.rank == 0 {
                let parts: Vec<Vec<f32>> = (0..self.group.ranks)
                    .map(|rank| partial_sum(step, index, rank))
                    .collect();
                for (at, sum) in sum.iter().enumerate() {
                    let exact: f64 = parts.iter().map(|part| f64::from(part[at])).sum();
                    error += (exact - f64::from(*sum)).powi(2);
                    energy += exact * exact;
                }
            }
            sums.extend(sum.iter().map(|x| x.to_bits()));
        }
        self.seen.sums.push(sums);
        self.seen.errors.push(error / energy);
    }

    fn finish(mut self) -> Rank {
        self.seen.manifest = Some(self.monitor.manifest().unwrap().digest());
        self.seen
    }
}

struct Others<'a>(&'a dyn Transport);

impl Others<'_> {
    fn send(&self, message: &Message) {
        let bytes = serde_json::to_vec(message).unwrap();
        (1..self.0.world_size()).for_each(|rank| self.0.send_message(rank, &bytes).unwrap());
    }
}

impl Peers for Others<'_> {
    fn tell(&self, command: &DriftCommand) -> anyhow::Result<()> {
        self.send(&Message::Drift(command.clone()));
        Ok(())
    }

    fn hear(&self) -> anyhow::Result<Vec<DriftReply>> {
        let hear = |rank| Ok(serde_json::from_slice(&self.0.recv_message(rank, PATIENCE)?)?);
        (1..self.0.world_size()).map(hear).collect()
    }
}

fn calibrate(ranks: usize, domain: Domain) -> Manifest {
    let (sequences, tokens) = CALIBRATION;
    let layer = |(index, name): (usize, &&str)| {
        let observers: Vec<RangeObserver> = (0..ranks)
            .map(|rank| {
                let mut observer = RangeObserver::new(FEATURES, 0.99).unwrap();
                for seed in 0..sequences {
                    let tokens = tokens as usize;
                    let step = Step {
                        domain,
                        tokens,
                        seed: 1_000_000 + seed,
                    };
                    observer.observe(&partial_sum(&step, index, rank)).unwrap();
                    observer.end_sequence();
                }
                observer
            })
            .collect();
        let statistics = LayerStatistics::gather(name, &observers).unwrap();
        statistics
            .into_layer(OutlierCount::Count(2), Selection::Largest)
            .unwrap()
    };
    let header = Header {
        model: Digest([7; 32]),
        dtype: Dtype::F32,
        world_size: ranks,
        corpus: Digest([9; 32]),
        sequences,
        tokens,
        ema: 0.99,
    };
    Manifest::new(header, LAYERS.iter().enumerate().map(layer).collect()).unwrap()
}

/// `[tokens, FEATURES]`: a loudness for each token, a size for each feature, and a sum of four even numbers in between.
fn partial_sum(step: &Step, layer: usize, rank: usize) -> Vec<f32> {
    let key = (layer * 64 + rank) as u64;
    let mut sizes = ChaCha8Rng::seed_from_u64(step.domain.0 * 1000 + key);
    let sizes: Vec<f32> = (0..FEATURES).map(|_| sizes.random_range(-1.5f32..1.5).exp2()).collect();
    let mut state = (step.domain.0 << 40) ^ (step.seed << 16) ^ key;
    let mut values = Vec::with_capacity(step.tokens * FEATURES);
    for _ in 0..step.tokens {
        let loudness = 1.0 + 0.4 * bell(&mut state);
        values.extend(sizes.iter().map(|size| loudness * size * bell(&mut state)));
    }
    values
}

/// The sum of four numbers in -0.5..0.5. SplitMix64: unoptimised builds spend their time here.
fn bell(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let sum = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum::<u64>();
    sum as f32 / 65536.0 - 2.0
}
