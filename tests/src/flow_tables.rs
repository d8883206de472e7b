//! The maps of a family that hold its flows, for tests and benchmarks: they look into them, and change what only packets and time
//! change otherwise. No program may run on them meanwhile, unless a function says that it may.

use std::fmt::Debug;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};
use lb_common::bucket::{
    BUCKET_WAYS, GATE_OVERFLOWED, Home, bucket_of, claim_of, claim_tag, claim_word, tag_of,
};
use lb_common::cache::wire_ports;
use lb_common::{Address, AnswerBucket, Flow, FlowBucket, FlowKey, HalfOpen, Tuple};

use crate::mapped::MappedArray;
use crate::plane_maps::map_of;

/// Protocol of entries that stand for flows of others.
const FILLING: u8 = 255;

/// The word of a bucket that is its gate.
const GATE: u32 = 0;

/// The word of a half-open flow's record that is its number.
const NUMBER: u32 = 0;

/// Flows of one family, and whose their answers are.
pub struct FlowTables<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    /// Promoted flows.
    connections: HashMap<MapData, FlowKey<A>, Flow<A>>,
    /// How many of them there may be.
    room: u32,
    /// The others, in rings.
    half_open: MappedArray,
    flows_at: MappedArray,
    answers: MappedArray,
    answers_more: HashMap<MapData, FlowKey<A>, FlowKey<A>>,
}

impl<A> FlowTables<A>
where
    A: Address + Default + Debug,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    /// Those of a loaded data plane.
    ///
    /// # Errors
    ///
    /// If one is not there or is another than expected.
    pub fn of(ebpf: &Ebpf) -> Result<Self> {
        Self::open(|name| map_of(ebpf, name))
    }

    /// Those that are pinned in a directory.
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    pub fn pinned(pins: &Path) -> Result<Self> {
        Self::open(|name| MapData::from_pin(pins.join(name)).context("cannot open a pinned map"))
    }

    fn open(open: impl Fn(&str) -> Result<MapData>) -> Result<Self> {
        let open = |name: &str| {
            let name = format!("{name}_v{}", A::VERSION);
            open(&name).with_context(|| format!("cannot open `{name}`"))
        };
        let connections = open("connections")?;
        let tables = Self {
            room: connections.info()?.max_entries(),
            connections: Map::HashMap(connections).try_into()?,
            half_open: MappedArray::new(&open("half_open")?)?,
            flows_at: MappedArray::new(&open("flows_at")?)?,
            answers: MappedArray::new(&open("answers")?)?,
            answers_more: Map::HashMap(open("answers_more")?).try_into()?,
        };
        Ok(tables)
    }

    /// How many flows that are not promoted each CPU has room for.
    ///
    /// # Errors
    ///
    /// If the CPUs cannot be counted.
    pub fn half_open_room(&self) -> Result<u32> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
        Ok(self.half_open.values() / u32::try_from(cpus)?)
    }

    /// How many promoted and half-open flows there may be.
    pub const fn flows_at_most(&self) -> u32 {
        self.room.saturating_add(self.half_open.values())
    }

    /// Into how many buckets answers fall.
    pub const fn answer_buckets(&self) -> u32 {
        self.answers.values()
    }

    /// Bytes of the buckets that tell whose answers are, and where flows are.
    pub const fn bucket_bytes(&self) -> usize {
        self.answers.bytes() + self.flows_at.bytes()
    }

    /// All promoted flows.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn promoted(&self) -> Result<Vec<(FlowKey<A>, Flow<A>)>> {
        let mut flows = self.connections.iter().collect::<Result<Vec<_>, _>>()?;
        flows.retain(|(key, _)| key.protocol != FILLING);
        Ok(flows)
    }

    /// All others, with the slots of their records.
    pub fn half_open(&self) -> impl Iterator<Item = (u32, HalfOpen<A>)> {
        let slots = (0..self.half_open.values()).filter(|&slot| self.half_open.word(slot, NUMBER) != 0);
        slots.map(|slot| (slot, self.half_open.value(slot)))
    }

    /// All flows.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn flows(&self) -> Result<Vec<(FlowKey<A>, Flow<A>)>> {
        let mut flows = self.promoted()?;
        flows.extend(self.half_open().map(|(_, record)| (record.key, record.flow)));
        Ok(flows)
    }

    /// Changes all flows.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn change(&mut self, change: impl Fn(&FlowKey<A>, &mut Flow<A>)) -> Result<()> {
        for (key, mut flow) in self.connections.iter().collect::<Result<Vec<_>, _>>()? {
            change(&key, &mut flow);
            self.connections.insert(key, flow, 0)?;
        }
        for (slot, mut record) in self.half_open().collect::<Vec<_>>() {
            change(&record.key, &mut record.flow);
            self.half_open.set_value(slot, record);
        }
        Ok(())
    }

    /// Fills the connection map up to where so many flows more can be promoted.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or written.
    pub fn fill(&mut self, flows_more: u32) -> Result<()> {
        let taken = u32::try_from(self.connections.keys().count())?;
        for number in 0..self.room.saturating_sub(taken + flows_more) {
            let [a, b, c, d] = number.to_be_bytes().map(u16::from);
            let (source_port, destination_port) = (a << 8 | b, c << 8 | d);
            let key = FlowKey { source_port, destination_port, protocol: FILLING, ..FlowKey::default() };
            self.connections.insert(key, Flow::default(), 0)?;
        }
        Ok(())
    }

    /// Enters a promoted flow and claims its answers; either may be there already. Programs may run meanwhile, as long as they open no flow.
    ///
    /// # Errors
    ///
    /// If a map takes no more, or another flow has such answers.
    pub fn insert(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<()> {
        self.claim_answers(&flow.answers(key.protocol), key)?;
        self.connections.insert(key, flow, 0).context("cannot write a connection map")?;
        self.say_promoted(key)
    }

    /// Removes a flow, if it is there, and its claims.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn remove(&mut self, key: &FlowKey<A>) -> Result<()> {
        if let Some((slot, at)) = self.find_half_open(key) {
            let record: HalfOpen<A> = self.half_open.value(slot);
            self.end_half_open(slot, at);
            self.release_answers(&record.flow.answers(key.protocol), key)?;
        }
        let flow = match self.connections.get(key, 0) {
            Ok(flow) => flow,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(error) => return Err(error).context("cannot read a connection map"),
        };
        self.connections.remove(key).context("cannot remove a flow")?;
        if let Some(at) = self.find_promoted(key) {
            self.flows_at.set_word(at.0, at.1, 0);
        }
        self.release_answers(&flow.answers(key.protocol), key)
    }

    /// Makes the rings as if no flow had ever been opened.
    ///
    /// # Errors
    ///
    /// If a map cannot be read or written.
    pub fn empty_rings(&mut self) -> Result<()> {
        for (slot, HalfOpen { key, flow, .. }) in self.half_open().collect::<Vec<_>>() {
            let (_, at) = self.find_half_open(&key).context("a half-open flow is not found")?;
            self.end_half_open(slot, at);
            self.release_answers(&flow.answers(key.protocol), &key)?;
        }
        self.half_open.clear();
        Ok(())
    }

    /// Makes all half-open flows as if their backends had answered, which promotes those whose client has sent more than a SYN.
    ///
    /// # Errors
    ///
    /// If one cannot be found or promoted.
    pub fn answer(&mut self) -> Result<()> {
        for (slot, mut record) in self.half_open().collect::<Vec<_>>() {
            let HalfOpen { key, flow, .. } = &mut record;
            flow.seen_to_client |= Flow::<A>::ESTABLISHED;
            if !flow.is_promoted(key.protocol) {
                self.half_open.set_value(slot, record);
                continue;
            }
            let (_, at) = self.find_half_open(key).context("a half-open flow is not found")?;
            self.connections.insert(*key, *flow, 0).context("cannot promote a flow")?;
            self.end_half_open(slot, at);
            let key = *key;
            self.say_promoted(&key)?;
        }
        Ok(())
    }

    /// Makes all maps as if just loaded.
    ///
    /// # Errors
    ///
    /// If one cannot be read or written.
    pub fn clear(&mut self) -> Result<()> {
        for key in self.connections.keys().collect::<Result<Vec<_>, _>>()? {
            self.connections.remove(&key)?;
        }
        for answer in self.answers_more.keys().collect::<Result<Vec<_>, _>>()? {
            self.answers_more.remove(&answer)?;
        }
        self.half_open.clear();
        self.flows_at.clear();
        self.answers.clear();
        Ok(())
    }

    /// Requires every flow to be in one place only, to be found there, and to be found by its answers.
    ///
    /// # Errors
    ///
    /// If a flow is not.
    pub fn require_consistent(&self) -> Result<()> {
        for (key, flow) in self.promoted()? {
            let is_found = self.find_promoted(&key).is_some() || self.is_lost(&key);
            ensure!(is_found, "no claim leads to a promoted flow: {key:?}");
            self.require_answers(&key, &flow)?;
        }
        for (slot, HalfOpen { key, flow, .. }) in self.half_open() {
            let found = self.find_half_open(&key).map(|(slot, _)| slot);
            ensure!(found == Some(slot), "a half-open flow is in slot {slot}, found in {found:?}: {key:?}");
            let is_promoted = !matches!(self.connections.get(&key, 0), Err(MapError::KeyNotFound));
            ensure!(!is_promoted, "a flow is half-open and promoted: {key:?}");
            self.require_answers(&key, &flow)?;
        }
        Ok(())
    }

    fn require_answers(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<()> {
        let answer = flow.answers(key.protocol);
        // Those of a flow whose packets stay as they are (`mode = "dsr"`) do not come this way.
        let is_sure = answer == key.reversed() || self.is_claimed(&answer, key)?;
        ensure!(is_sure, "the answers of a flow are not claimed for it:\n{key:?}\n{flow:?}");
        Ok(())
    }

    /// How many claims there are: on answers, and on where flows are.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn claims(&self) -> Result<usize> {
        let elsewhere = self.answers_more.keys().collect::<Result<Vec<_>, _>>()?.len();
        let count = |array: &MappedArray, first: u32| {
            let claims = (0..array.values()).flat_map(|bucket| ways(array, bucket, first));
            claims.filter(|&(_, claim)| claim != 0).count()
        };
        let answers = count(&self.answers, AnswerBucket::<A>::CLAIMS);
        Ok(elsewhere + answers + count(&self.flows_at, FlowBucket::CLAIMS))
    }

    /// The slot of a client's half-open flow, and the bucket and word of the claim that tells it.
    fn find_half_open(&self, key: &FlowKey<A>) -> Option<(u32, (u32, u32))> {
        let hash = Tuple::of(key).hash();
        let bucket = bucket_of(hash, self.flows_at.values());
        let mut claims = ways(&self.flows_at, bucket, FlowBucket::CLAIMS);
        let (word, claim) = claims.find(|&(_, claim)| claim_tag(claim) == tag_of(hash))?;
        let slot = claim_word(claim);
        if slot == FlowBucket::PROMOTED {
            return None;
        }
        let record: HalfOpen<A> = self.half_open.value(slot);
        (record.number != 0 && record.key == *key).then_some((slot, (bucket, word)))
    }

    /// The bucket and word of the claim that tells that a client's flow is promoted.
    fn find_promoted(&self, key: &FlowKey<A>) -> Option<(u32, u32)> {
        let hash = Tuple::of(key).hash();
        let bucket = bucket_of(hash, self.flows_at.values());
        let wanted = claim_of(tag_of(hash), FlowBucket::PROMOTED);
        let (word, _) =
            ways(&self.flows_at, bucket, FlowBucket::CLAIMS).find(|&(_, claim)| claim == wanted)?;
        Some((bucket, word))
    }

    /// Whether a client's flow may be promoted where no claim tells.
    fn is_lost(&self, key: &FlowKey<A>) -> bool {
        let hash = Tuple::of(key).hash();
        let bucket = bucket_of(hash, self.flows_at.values());
        self.flows_at.word(bucket, GATE) & FlowBucket::lost(tag_of(hash)) != 0
    }

    /// Claims that a client's flow is promoted, if its bucket has room.
    fn say_promoted(&mut self, key: &FlowKey<A>) -> Result<()> {
        if self.find_promoted(key).is_some() {
            return Ok(());
        }
        let hash = Tuple::of(key).hash();
        let (bucket, tag) = (bucket_of(hash, self.flows_at.values()), tag_of(hash));
        let claims = || ways(&self.flows_at, bucket, FlowBucket::CLAIMS);
        ensure!(!claims().any(|(_, claim)| claim_tag(claim) == tag), "others look like {key:?}");
        let free = claims().find(|&(_, claim)| claim == 0);
        match free {
            Some((word, _)) => {
                self.flows_at.set_word(bucket, word, claim_of(tag, FlowBucket::PROMOTED));
            }
            None => {
                let gate = self.flows_at.word(bucket, GATE);
                self.flows_at.set_word(bucket, GATE, gate | FlowBucket::lost(tag));
            }
        }
        Ok(())
    }

    /// Makes a record one of no flow; its answers stay claimed.
    fn end_half_open(&mut self, slot: u32, (bucket, word): (u32, u32)) {
        self.half_open.set_value(slot, HalfOpen::<A>::default());
        self.flows_at.set_word(bucket, word, 0);
    }

    fn claim_answers(&mut self, answer: &FlowKey<A>, client: &FlowKey<A>) -> Result<()> {
        if self.is_claimed(answer, client)? {
            return Ok(());
        }
        let home = Home::of(answer, self.answers.values());
        let (bucket, tag) = (home.bucket(), home.tag());
        let claims = || ways(&self.answers, bucket, AnswerBucket::<A>::CLAIMS);
        ensure!(!claims().any(|(_, claim)| claim_tag(claim) == tag), "others look like {answer:?}");
        let Some((word, _)) = claims().find(|&(_, claim)| claim == 0) else {
            let gate = self.answers.word(bucket, GATE);
            self.answers.set_word(bucket, GATE, gate | GATE_OVERFLOWED);
            return self.answers_more.insert(answer, client, 0).context("cannot claim answers elsewhere");
        };
        // The claim last: programs may look for it at any time.
        for (number, content) in (0..).zip(client_words(client)) {
            self.answers.set_word(bucket, client_word::<A>(word, number), content);
        }
        self.answers.set_word(bucket, word, claim_of(tag, ports(client)));
        Ok(())
    }

    fn release_answers(&mut self, answer: &FlowKey<A>, client: &FlowKey<A>) -> Result<()> {
        if let Some((bucket, word)) = self.find_claim(answer, client) {
            self.answers.set_word(bucket, word, 0);
        } else if self.is_claimed_elsewhere(answer, client)? {
            self.answers_more.remove(answer).context("cannot release answers")?;
        }
        Ok(())
    }

    fn is_claimed(&self, answer: &FlowKey<A>, client: &FlowKey<A>) -> Result<bool> {
        Ok(self.find_claim(answer, client).is_some() || self.is_claimed_elsewhere(answer, client)?)
    }

    /// Bucket and word of a client's claim on answers.
    fn find_claim(&self, answer: &FlowKey<A>, client: &FlowKey<A>) -> Option<(u32, u32)> {
        let home = Home::of(answer, self.answers.values());
        let bucket = home.bucket();
        let wanted = claim_of(home.tag(), ports(client));
        let mut claims = ways(&self.answers, bucket, AnswerBucket::<A>::CLAIMS);
        let (word, _) = claims.find(|&(_, claim)| claim == wanted)?;
        let mut words = (0..).zip(client_words(client));
        words
            .all(|(number, content)| self.answers.word(bucket, client_word::<A>(word, number)) == content)
            .then_some((bucket, word))
    }

    fn is_claimed_elsewhere(&self, answer: &FlowKey<A>, client: &FlowKey<A>) -> Result<bool> {
        let bucket = Home::of(answer, self.answers.values()).bucket();
        if self.answers.word(bucket, GATE) & GATE_OVERFLOWED == 0 {
            return Ok(false);
        }
        match self.answers_more.get(answer, 0) {
            Ok(found) => Ok(found == *client),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error).context("cannot read what answers are claimed elsewhere"),
        }
    }
}

/// The claims of a bucket, with the words that they are in.
fn ways(array: &MappedArray, bucket: u32, first: u32) -> impl Iterator<Item = (u32, u64)> {
    (first..first + BUCKET_WAYS as u32).map(move |word| (word, array.word(bucket, word)))
}

/// The ports of a client's packets, as a claim has them.
const fn ports<A>(client: &FlowKey<A>) -> u32 {
    wire_ports(client.source_port, client.destination_port)
}

/// The word of a bucket that holds one of [`client_words`] for the claim in this word.
const fn client_word<A: Address>(claim: u32, number: u32) -> u32 {
    let way = claim - AnswerBucket::<A>::CLAIMS;
    AnswerBucket::<A>::CLIENTS + way * AnswerBucket::<A>::CLIENT_WORDS + number
}

/// Source and destination address of a client's packets, as they follow each other in memory.
fn client_words<A: Address>(client: &FlowKey<A>) -> impl Iterator<Item = u64> {
    let mut words = [[0_u32; 2]; 4];
    let of_address = size_of::<A>() / size_of::<u32>();
    let addresses = [client.source, client.destination].map(|address| address.words());
    let all = addresses.iter().flat_map(|words| &words[..of_address]);
    for (number, word) in all.enumerate() {
        words[number / 2][number % 2] = *word;
    }
    let join = |[first, second]: [u32; 2]| {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    words.into_iter().take(AnswerBucket::<A>::CLIENT_WORDS as usize).map(join)
}
