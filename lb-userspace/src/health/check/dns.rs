//! DNS checks (RFC 1035): a query, and the response code of the answer to it.

use std::borrow::Cow;

use hickory_proto::op::{Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::failure::{Failure, Waiting};
use super::{Attempt, net};
use crate::config::{DnsCheck, DnsClass, DnsTransport, DnsType, Rcode};

/// A prepared question, and the response codes that are good answers.
pub(super) struct Question {
    query: Query,
    transport: DnsTransport,
    accepted: Vec<Rcode>,
}

/// What the bytes that came are.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The answer to our question.
    Ours(ResponseCode),
    /// Something else; what.
    Strange(&'static str),
}

impl Question {
    pub(super) fn new(check: &DnsCheck) -> Result<Self, String> {
        let mut name =
            Name::from_ascii(&check.name).map_err(|error| format!("dns.name {:?}: {error}", check.name))?;
        name.set_fqdn(true);
        let mut query = Query::query(name, record_type(check.record_type));
        query.set_query_class(match check.class {
            DnsClass::In => DNSClass::IN,
            DnsClass::Ch => DNSClass::CH,
        });
        Ok(Self { query, transport: check.transport, accepted: check.rcodes.clone() })
    }

    pub(super) async fn check(&self, attempt: &mut Attempt<'_>) -> Result<(), Failure> {
        let id = rand::random();
        let query = self.encode(id)?;
        match self.transport {
            DnsTransport::Udp => self.over_udp(id, &query, attempt).await,
            DnsTransport::Tcp => self.over_tcp(id, &query, attempt).await,
        }
    }

    /// Waits past strange datagrams, which may be late answers or forged: the right one may yet come.
    async fn over_udp(&self, id: u16, query: &[u8], attempt: &mut Attempt<'_>) -> Result<(), Failure> {
        let socket = net::udp(attempt).await?;
        socket.send(query).await.map_err(|error| Failure::os("send", &error))?;
        let mut strange = None;
        // All that a server sends who was not told otherwise (RFC 1035 section 2.3.4).
        let mut buffer = [0; 512];
        loop {
            let received = match attempt.within(Waiting::Answer, socket.recv(&mut buffer)).await {
                Err(timed_out) => return Err(strange.map_or(timed_out, Failure::Protocol)),
                Ok(received) => received.map_err(|error| Failure::os("recv", &error))?,
            };
            match self.recognise(id, &buffer[..received]) {
                Answer::Ours(rcode) => return self.judge(rcode),
                Answer::Strange(what) => strange = Some(what.to_owned()),
            }
        }
    }

    /// Messages over TCP are preceded by their length in two bytes, network order (RFC 1035 section 4.2.2).
    async fn over_tcp(&self, id: u16, query: &[u8], attempt: &mut Attempt<'_>) -> Result<(), Failure> {
        let mut stream = net::tcp(attempt).await?;
        let exchange = async {
            let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
            let framed = [&length.to_be_bytes(), query].concat();
            stream.write_all(&framed).await.map_err(|error| Failure::os("write", &error))?;
            let length = stream.read_u16().await.map_err(|error| Failure::os("read", &error))?;
            let mut answer = vec![0; length.into()];
            stream.read_exact(&mut answer).await.map_err(|error| Failure::os("read", &error))?;
            Ok(answer)
        };
        let answer = attempt.within(Waiting::Answer, exchange).await??;
        match self.recognise(id, &answer) {
            Answer::Ours(rcode) => self.judge(rcode),
            Answer::Strange(what) => Err(Failure::Protocol(what.to_owned())),
        }
    }

    fn encode(&self, id: u16) -> Result<Vec<u8>, Failure> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        message.to_vec().map_err(|error| Failure::Unusable(format!("no DNS query: {error}")))
    }

    /// Reads header and question only: what follows has no bearing on the verdict, and may be truncated (TC).
    fn recognise(&self, id: u16, bytes: &[u8]) -> Answer {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(header) = Header::read(&mut decoder) else {
            return Answer::Strange("the answer is not a DNS message");
        };
        if header.message_type != MessageType::Response {
            return Answer::Strange("the answer is not a DNS response");
        }
        if header.id != id {
            return Answer::Strange("the answer has another DNS id");
        }
        let question = (header.counts.queries == 1).then(|| Query::read(&mut decoder).ok()).flatten();
        if question.as_ref() != Some(&self.query) {
            return Answer::Strange("the answer is to another DNS question");
        }
        Answer::Ours(header.response_code)
    }

    fn judge(&self, rcode: ResponseCode) -> Result<(), Failure> {
        let found = u16::from(rcode.low());
        if self.accepted.iter().any(|&accepted| number(accepted) == found) {
            return Ok(());
        }
        let expected = self.accepted.iter().map(|accepted| accepted.word()).collect::<Vec<_>>().join(",");
        Err(Failure::Rcode { found, name: rcode_name(found), expected })
    }
}

const fn record_type(record_type: DnsType) -> RecordType {
    match record_type {
        DnsType::A => RecordType::A,
        DnsType::Aaaa => RecordType::AAAA,
        DnsType::Txt => RecordType::TXT,
    }
}

const fn number(rcode: Rcode) -> u16 {
    match rcode {
        Rcode::NoError => 0,
        Rcode::ServFail => 2,
        Rcode::NxDomain => 3,
        Rcode::Refused => 5,
    }
}

/// The name in the IANA registry of DNS RCODEs, as `dig` prints it.
fn rcode_name(rcode: u16) -> Cow<'static, str> {
    Cow::Borrowed(match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        other => return Cow::Owned(format!("RCODE{other}")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: u16 = 0x1234;

    fn question(record_type: DnsType, class: DnsClass, rcodes: &[Rcode]) -> Question {
        let check = DnsCheck {
            name: "Example.org".into(),
            class,
            record_type,
            transport: DnsTransport::Udp,
            rcodes: rcodes.to_vec(),
        };
        Question::new(&check).expect("a good name")
    }

    fn default_question() -> Question {
        question(DnsType::A, DnsClass::In, &[Rcode::NoError])
    }

    /// The query, made an answer: QR set, the given response code.
    fn answer(question: &Question, rcode: u8) -> Vec<u8> {
        let mut bytes = question.encode(ID).expect("encodes");
        bytes[2] |= 0x80;
        bytes[3] = rcode;
        bytes
    }

    #[test]
    fn h11_class_and_type_are_on_the_wire() {
        let tail = |record_type, class| {
            let bytes = question(record_type, class, &[]).encode(ID).expect("encodes");
            let bytes = bytes.get(bytes.len() - 4..).expect("type and class").to_vec();
            (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]))
        };
        assert_eq!(tail(DnsType::A, DnsClass::In), (1, 1));
        assert_eq!(tail(DnsType::Aaaa, DnsClass::In), (28, 1));
        assert_eq!(tail(DnsType::Txt, DnsClass::Ch), (16, 3));
    }

    #[test]
    fn the_name_is_sent_whole_and_recursion_is_asked_for() {
        let bytes = default_question().encode(ID).expect("encodes");
        assert_eq!(bytes[..12], [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(bytes[12..].to_ascii_lowercase().starts_with(b"\x07example\x03org\0"));
    }

    #[test]
    fn h10_the_response_code_decides() {
        let codes = [Rcode::NoError, Rcode::ServFail, Rcode::NxDomain, Rcode::Refused];
        for accepted in codes {
            for sent in codes {
                let question = question(DnsType::A, DnsClass::In, &[accepted]);
                let found = question.recognise(ID, &answer(&question, number(sent) as u8));
                let Answer::Ours(rcode) = found else { panic!("{found:?}") };
                match question.judge(rcode) {
                    Ok(()) => assert_eq!(sent, accepted),
                    Err(failure) => {
                        assert_ne!(sent, accepted);
                        let expected = accepted.word().to_owned();
                        let failed =
                            Failure::Rcode { found: number(sent), name: sent.word().into(), expected };
                        assert_eq!(failure, failed);
                    }
                }
            }
        }
    }

    #[test]
    fn only_an_answer_to_our_question_is_ours() {
        let question = default_question();
        let good = answer(&question, 0);
        assert_eq!(question.recognise(ID, &good), Answer::Ours(ResponseCode::NoError));
        let strange = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            match question.recognise(ID, &bytes) {
                Answer::Strange(what) => what,
                Answer::Ours(rcode) => panic!("taken for ours, with {rcode}"),
            }
        };
        assert_eq!(strange(&|bytes| bytes[0] ^= 1), "the answer has another DNS id");
        assert_eq!(strange(&|bytes| bytes[2] &= 0x7f), "the answer is not a DNS response");
        assert_eq!(strange(&|bytes| bytes[13] ^= 1), "the answer is to another DNS question");
        assert_eq!(strange(&|bytes| bytes[5] = 0), "the answer is to another DNS question");
        assert_eq!(
            strange(&|bytes| *bytes.last_mut().expect("not empty") = 3),
            "the answer is to another DNS question"
        );
        assert_eq!(strange(&|bytes| bytes.truncate(11)), "the answer is not a DNS message");
        assert_eq!(strange(&|bytes| bytes.truncate(20)), "the answer is to another DNS question");
    }

    #[test]
    fn truncation_and_another_spelling_are_no_failure() {
        let question = default_question();
        let mut bytes = answer(&question, 0);
        bytes[2] |= 0x02;
        bytes[7] = 9;
        bytes[12..].make_ascii_uppercase();
        assert_eq!(question.recognise(ID, &bytes), Answer::Ours(ResponseCode::NoError));
    }

    #[test]
    fn a_name_that_is_none_is_no_panic() {
        for name in ["", "a..b", &"x".repeat(64), &"abcdefgh.".repeat(40)] {
            let check = DnsCheck {
                name: name.into(),
                class: DnsClass::In,
                record_type: DnsType::A,
                transport: DnsTransport::Udp,
                rcodes: vec![Rcode::NoError],
            };
            if let Ok(question) = Question::new(&check) {
                assert!(name.is_empty(), "{name:?} was taken");
                assert!(question.encode(ID).is_ok(), "the root is a name");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = default_question().recognise(ID, &bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(), tail in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let question = default_question();
            let mut bytes = answer(&question, 0);
            bytes.extend(tail);
            for (index, value) in damage {
                let length = bytes.len();
                bytes[index.index(length)] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Answer::Ours(rcode) = question.recognise(ID, &bytes) {
                prop_assert_eq!(&bytes[..2], &ID.to_be_bytes());
                prop_assert_eq!(u16::from(rcode.low()), u16::from(bytes[3] & 0x0f));
            }
        }
    }
}
