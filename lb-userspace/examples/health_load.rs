//! What many health checks cost: `cargo run --release -p lb-userspace --example health_load`.
//!
//! Makes TCP and HTTP checks by halves against servers in a process of their own, on loopback, and prints whether
//! all were on time, and what CPU time and memory this process, which only checks, has used.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use lb_userspace::config::{CheckKind, CheckProtocol, HttpCheck, Method, Payload, StatusCodes};
use lb_userspace::health::{CheckId, CheckResult, CheckSpec, CheckStatus, Scheduler};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The goal: 10,000 checks every 5 s on half a core and 300 MB.
const CPU_GOAL: f64 = 0.5;
const MEMORY_GOAL_MB: i64 = 300;

#[derive(Parser)]
struct Arguments {
    /// How many checks, TCP and HTTP by halves.
    #[arg(long, default_value_t = 10_000)]
    checks: u32,
    /// From check to check.
    #[arg(long, default_value_t = 5_000)]
    interval_ms: u64,
    /// How many intervals to watch.
    #[arg(long, default_value_t = 6)]
    intervals: u32,
    /// Only serves; started by the program itself.
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.serve { runtime.block_on(serve()) } else { runtime.block_on(measure(&arguments)) }
}

async fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let (_servers, [tcp, http]) = Servers::start()?;
    let interval = Duration::from_millis(arguments.interval_ms);
    let (sender, mut results) = mpsc::unbounded_channel();
    let scheduler = Scheduler::start(sender);
    let begun = Instant::now();
    scheduler.update((0..arguments.checks).map(|index| wanted(index, interval, tcp, http)).collect());

    let end = tokio::time::Instant::from_std(begun + interval * arguments.intervals);
    let mut tally = Tally { begun, ..Tally::default() };
    while let Ok(Some((id, result))) = tokio::time::timeout_at(end, results.recv()).await {
        tally.add(id, &result);
    }
    drop(scheduler);
    tally.report(arguments, interval)
}

/// Every check has an address of its own in 127.0.0.0/8: equal checks would be made once.
fn wanted(index: u32, interval: Duration, tcp: u16, http: u16) -> (CheckId, CheckSpec) {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + index);
    let (port, protocol, kind) = if index.is_multiple_of(2) {
        (tcp, CheckProtocol::Tcp, CheckKind::Tcp(Payload::default()))
    } else {
        (http, CheckProtocol::Http, CheckKind::Http(http_check()))
    };
    let target = SocketAddr::new(address.into(), port);
    let timeout = interval.min(Duration::from_secs(3));
    let spec = CheckSpec { target, interval, timeout, source_address: None, protocol, kind };
    (CheckId::new("load", index.to_string()), spec)
}

fn http_check() -> HttpCheck {
    HttpCheck {
        path: "/health".into(),
        method: Method::Get,
        host: String::new(),
        return_code: StatusCodes { text: "200".into(), ranges: vec![(200, 200)] },
        response_body_regex: "Estado:Correcto:.*".into(),
        max_body_bytes: 65_536,
        tls: None,
    }
}

/// What came of the checks.
struct Tally {
    begun: Instant,
    last: HashMap<CheckId, (Instant, u32)>,
    first_result: Duration,
    results: u32,
    bad: u32,
    longest_gap: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            last: HashMap::new(),
            first_result: Duration::ZERO,
            results: 0,
            bad: 0,
            longest_gap: Duration::ZERO,
        }
    }
}

impl Tally {
    fn add(&mut self, id: CheckId, result: &CheckResult) {
        self.results += 1;
        self.bad += u32::from(result.outcome.status != CheckStatus::Ok);
        let now = Instant::now();
        if self.results == 1 {
            self.first_result = now - self.begun;
        }
        let (last, count) = self.last.entry(id).or_insert((self.begun, 0));
        self.longest_gap = self.longest_gap.max(now - *last);
        (*last, *count) = (now, *count + 1);
    }

    fn report(&self, arguments: &Arguments, interval: Duration) -> Result<ExitCode> {
        let elapsed = self.begun.elapsed();
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let cpu = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
        let share = cpu / elapsed.as_secs_f64();
        let memory = usage.max_rss() / 1024;
        let fewest = self.last.values().map(|&(_, count)| count).min().unwrap_or(0);
        let silent = arguments.checks as usize - self.last.len();
        println!("checks            {} every {:?}, watched for {elapsed:.1?}", arguments.checks, interval);
        println!("results           {}, {} of them not OK", self.results, self.bad);
        println!("first result      after {:.1?}: what it takes to prepare all checks", self.first_result);
        println!("without a result  {silent}; fewest results of a check {fewest}");
        println!("longest gap       {:.2} intervals", self.longest_gap.div_duration_f64(interval));
        println!(
            "CPU               {share:.3} of a core ({:.0} µs a check)",
            cpu * 1e6 / f64::from(self.results)
        );
        println!("peak memory       {memory} MB");
        // A check that is a whole interval late is a check that was left out.
        let on_time = silent == 0 && self.longest_gap < interval * 2 && fewest + 1 >= arguments.intervals;
        let cheap = share < CPU_GOAL && memory < MEMORY_GOAL_MB;
        let passed = on_time && cheap && self.bad == 0;
        println!("goal              {}", if passed { "reached" } else { "missed" });
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The process with the servers; ends with this one.
struct Servers(Child);

impl Servers {
    fn start() -> Result<(Self, [u16; 2])> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the servers")?;
        let stdout = child.stdout.take().context("the servers' stdout")?;
        let servers = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let (tcp, http) = line.trim().split_once(' ').with_context(|| format!("two ports, not {line:?}"))?;
        Ok((servers, [tcp.parse()?, http.parse()?]))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // It may have ended by itself already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn serve() -> Result<ExitCode> {
    let (tcp, http) = (listen()?, listen()?);
    println!("{} {}", tcp.local_addr()?.port(), http.local_addr()?.port());
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(answer_nothing(stream));
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = http.accept().await {
            tokio::spawn(answer_http(stream));
        }
    });
    // Until the other process closes our stdin, in whatever way it ends.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(ExitCode::SUCCESS)
}

/// A listener on every address of the loopback interface, and on no other interface.
fn listen() -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn answer_nothing(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

async fn answer_http(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 1024];
    if stream.read(&mut request).await? > 0 {
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\nConnection: close\r\n\r\nEstado:Correcto: v1\n",
            )
            .await?;
    }
    Ok(())
}
