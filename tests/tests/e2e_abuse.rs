//! A running controller that is given files and requests of every kind: it takes them whole or not at all, and goes on.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, traffic};
use lb_userspace::config::{parse, show};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

const FAMILY: Family = Family::V4;
const CONFIG: &str = "/run/lb.toml";
const SOCKET: &str = "/run/lb/api.sock";
const FILES: usize = 1_000;
const REQUESTS: usize = 10_000;
const THREADS: usize = 8;
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request on a connection of its own; the status code and the body of the answer.
fn send(method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(SOCKET).context("nobody listens: has the controller ended?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // Whoever refuses the head may not wait for the body.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // It is refused before all of it was read.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => {
            read.with_context(|| format!("no answer to {method} {path}"))?;
        }
    }
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
    let code = str::from_utf8(&answer[..end])?.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("{method} {path}: {:?}", String::from_utf8_lossy(&answer)))?;
    Ok((code, answer.split_off((end + 4).min(answer.len()))))
}

/// What runs, as the controller tells it.
fn running() -> Result<String> {
    let (code, body) = send("GET", "/v1/config", b"")?;
    let document: Value = serde_json::from_slice(&body)?;
    ensure!(code == 200, "{code} {document}");
    Ok(document["toml"].as_str().unwrap_or_default().to_owned())
}

const VALUES: &[&str] = &[
    "0",
    "1",
    "2",
    "7",
    "80",
    "443",
    "1000",
    "65535",
    "65536",
    "-1",
    "1e9",
    "true",
    "false",
    "\"\"",
    "\"x\"",
    "nan",
    "\"drop\"",
    "\"reset\"",
    "\"move\"",
    "\"auto\"",
    "\"never\"",
    "\"tcp\"",
    "\"udp\"",
    "\"10.0.1.12\"",
    "\"10.0.1.103\"",
    "\"fd00:1::10\"",
    "\"half\"",
    "\"50%\"",
    "[]",
    "{}",
    "'",
    "\"200-299\"",
];

const LINES: &[&str] = &[
    "weight = 3",
    "backup = true",
    "drain = true",
    "offline = true",
    "fail_open = true",
    "min_healthy = 1",
    "no_backend_action = \"reset\"",
    "policy = \"source_ip\"",
    "max_new_flows_per_s = 1000",
    "[[listener]]",
    "[lb]",
    "deny_sources = [\"192.0.2.0/24\"]",
    "on_untracked_tcp = \"drop\"",
    "drain_timeout_s = 1",
    "rise = 2",
    "on_exit = \"keep\"",
    "snat_ports = \"2000-3000\"",
    "icmp_echo = false",
    "preempt = false",
    "\u{0}",
    "ä = 1",
    "name = \"other\"",
];

/// One to three changes of a text, as slips of the hand or malice would make them.
fn mutate(text: &str, random: &mut StdRng) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..random.random_range(1..=3) {
        let at = random.random_range(0..lines.len());
        match random.random_range(0..7) {
            0 => {
                lines.remove(at);
            }
            1 => lines.insert(at, lines[random.random_range(0..lines.len())].clone()),
            2 | 3 => lines.insert(at, (*LINES.choose(random).unwrap_or(&"")).to_owned()),
            4 | 5 => {
                let value = VALUES.choose(random).unwrap_or(&"");
                if let Some((key, _)) = lines[at].split_once(" = ") {
                    lines[at] = format!("{key} = {value}");
                }
            }
            _ => {
                let mut characters: Vec<char> = lines[at].chars().collect();
                if !characters.is_empty() {
                    let place = random.random_range(0..characters.len());
                    characters[place] = random.random_range(' '..='~');
                }
                lines[at] = characters.into_iter().collect();
            }
        }
        if lines.is_empty() {
            break;
        }
    }
    lines.join("\n")
}

/// Keys of the maps that decide what is ours.
fn keys(host: &Host) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for map in ["listeners", "listener_ranges", "vips"] {
        let dump = host.run(&format!("bpftool --json map dump pinned /sys/fs/bpf/lb/{map}"))?.success()?;
        let dump: Value = serde_json::from_str(&dump.stdout)?;
        keys.extend(dump.as_array().into_iter().flatten().map(|entry| format!("{map} {}", entry["key"])));
    }
    keys.sort();
    Ok(keys)
}

fn assert_no_panic(lb: &Lb) -> Result<()> {
    let log = lb.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn a_thousand_mutated_files_are_taken_whole_or_not_at_all() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let valid = Config::new(&lab, FAMILY).to_string();
    let lb = Lb::start_with_rotation(host, &valid, 3)?;
    let keys_before = keys(host)?;
    let (taken, refused) = host.enter(|| {
        let mut random = StdRng::seed_from_u64(5);
        let mut before = running()?;
        let [mut taken, mut refused] = [0, 0];
        for number in 0..FILES {
            let text = mutate(&valid, &mut random);
            fs::write(CONFIG, &text)?;
            let (code, body) = send("POST", "/v1/reload", b"")?;
            let now = running()?;
            let expected = match code {
                200 => {
                    taken += 1;
                    match parse(&text, CONFIG) {
                        Ok(loaded) => show(&loaded.config),
                        Err(report) => bail!("file {number} was taken in spite of\n{report}"),
                    }
                }
                422 | 500 => {
                    refused += 1;
                    before
                }
                _ => bail!("file {number}: {code} {}", String::from_utf8_lossy(&body)),
            };
            ensure!(now == expected, "file {number}, {code}: expected\n{expected}\nfound\n{now}\nof\n{text}");
            before = now;
        }
        Ok((taken, refused))
    })?;
    println!("{taken} files taken, {refused} refused");
    ensure!(
        taken >= FILES / 20 && refused >= FILES / 20,
        "{taken} taken, {refused} refused: this shows little"
    );
    assert_no_panic(&lb)?;
    lb.reload(&valid)?;
    lb.wait_for_rotation(3, PATIENCE)?;
    assert_eq!(keys(host)?, keys_before);
    traffic::curl_many(&lab.client, FAMILY.vip_port(80), 20)?;
    lb.stop()
}

/// A request of which any part may be wrong. It does not detach: that would be obeyed.
fn any_request(random: &mut StdRng, backends: &[String]) -> (String, String, Vec<u8>) {
    const METHODS: &[&str] =
        &["GET", "GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"];
    const WORDS: &[&str] = &[
        "v1", "status", "history", "diagnose", "config", "names", "events", "reload", "backends", "web",
        "echo", "drain", "%00", "%ff", "..", "", "ä", "x",
    ];
    const ACTIONS: &[&str] = &["drain", "undrain", "offline", "online", "explode", ""];
    let pick = |words: &[&str], random: &mut StdRng| (*words.choose(random).unwrap_or(&"")).to_owned();
    let path = match random.random_range(0..10) {
        0..=4 => {
            let backend = backends.choose(random).cloned().unwrap_or_default();
            format!("/v1/backends/{backend}/{}", pick(ACTIONS, random))
        }
        5 => "/metrics".to_owned(),
        6 => pick(&["/v1/reload", "/v1/config", "/v1/names", "/v1/events", "/v1/openapi.json"], random),
        7 => pick(&["/v1/status", "/v1/history/web", "/v1/diagnose/web", "*", "//", "/v1/"], random),
        _ => {
            let count = random.random_range(0..6);
            let words: Vec<String> = (0..count).map(|_| pick(WORDS, random)).collect();
            format!("/{}", words.join("/"))
        }
    };
    let length = if random.random_ratio(1, 50) { random.random_range(0..100_000) } else { 0 };
    (pick(METHODS, random), path.replace('ä', "%C3%A4"), vec![0xA5; length])
}

#[test]
fn ten_thousand_requests_of_every_kind_leave_a_whole_state() -> Result<()> {
    let lab = Lab::one_arm()?;
    let host = &lab.balancer;
    let lb = Lb::start_with_rotation(host, &Config::new(&lab, FAMILY).to_string(), 3)?;
    let mut backends: Vec<String> = vec!["web/nobody".into(), "nothing/a".into(), "web/".into()];
    for backend in &lab.backends {
        backends.push(format!("web/{}%3A8080", backend.address(FAMILY)));
        backends.push(format!("echo/{}%3A7", backend.address(FAMILY)));
    }
    thread::scope(|scope| {
        let send_some = |seed| {
            let backends = &backends;
            scope.spawn(move || {
                host.enter(|| {
                    let mut random = StdRng::seed_from_u64(seed);
                    for _ in 0..REQUESTS / THREADS {
                        let (method, path, body) = any_request(&mut random, backends);
                        let (code, _) = send(&method, &path, &body)?;
                        let is_known = [200, 400, 404, 405, 413].contains(&code);
                        ensure!(is_known, "{method} {path} with {} bytes: {code}", body.len());
                    }
                    Ok(())
                })
            })
        };
        let senders: Vec<_> = (0..THREADS as u64).map(send_some).collect();
        senders
            .into_iter()
            .try_for_each(|sender| sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    assert_no_panic(&lb)?;

    // What is said of each backend is what was last asked for, in the configuration, in the status and in the note.
    let shown = Lb::command(host, "show")?.success()?.stdout;
    let config = parse(&shown, "shown").map_err(|report| anyhow::anyhow!("{report}"))?.config;
    let status = lb.status()?;
    for (set_name, set) in &config.backend_sets {
        for backend in &set.backends {
            let state = status.backend(set_name, &backend.name)?["state"].clone();
            let is_right = match (backend.offline, backend.drain) {
                (true, _) => state == "OFFLINE",
                (_, true) => state == "DRAINING",
                _ => state == "ACTIVE" || state == "DOWN",
            };
            ensure!(is_right, "{set_name}/{}: {state}, but {backend:?}", backend.name);
        }
    }
    lb.kill9()?;
    let lb = Lb::run(host, CONFIG.as_ref(), true)?;
    ensure!(Lb::command(host, "show")?.success()?.stdout == shown, "the restart has changed what runs");
    for backend in backends.iter().skip(3).map(|backend| backend.replace("%3A", ":")) {
        Lb::command(host, &format!("undrain {backend}"))?.success()?;
        Lb::command(host, &format!("online {backend}"))?.success()?;
    }
    lb.wait_for_rotation(3, PATIENCE)?;
    traffic::curl_many(&lab.client, FAMILY.vip_port(80), 20)?;
    lb.stop()
}
