//! Everything an operator does to a running balancer, again and again, under traffic that must not notice.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use anyhow::{Context, Result, ensure};
use lb_tests::netns::traffic::{self, Session};
use lb_tests::netns::{Config, Family, Lab, Lb, Service, binary, wait};
use lb_tests::servers::HTTP_PORT;

/// Open connections that transfer, half of them of each family.
const CONNECTIONS: usize = 200;
/// Threads that use them.
const THREADS: usize = 4;
/// Bytes of one piece that goes to the server and back.
const PIECE: usize = 4096;
/// From one piece of a connection to its next, at least: the machine has other work too.
const PACE: Duration = Duration::from_millis(200);
/// Requests of one call of curl.
const REQUESTS: usize = 20;

const RELOADS: usize = 20;
/// After which reload the controller is killed and started again.
const KILLS: [usize; 5] = [3, 7, 11, 15, 19];
/// After which reload it is replaced by another version.
const UPGRADES: [usize; 2] = [6, 14];
/// From one change of a rotation to the next.
const FLAP: Duration = Duration::from_secs(1);
/// How long what takes two seconds may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);

const CONFIG: &str = "/run/lb.toml";

/// The configurations between which the reloads go round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Three backends behind one VIP of each family.
    All,
    /// One backend is gone: its flows drain.
    Fewer,
    /// Another VIP of each family.
    MoreVips,
    /// Other weights.
    Weights,
}

impl Stage {
    const ROUND: [Self; 4] = [Self::All, Self::Fewer, Self::MoreVips, Self::Weights];

    const fn after(reloads: usize) -> Self {
        Self::ROUND[reloads % Self::ROUND.len()]
    }

    /// The file, for both families.
    fn config(self, lab: &Lab) -> String {
        let [v4, v6] = Family::ALL.map(|family| self.of_family(lab, family).to_string());
        let listeners_v6 = v6.find("\n[[listener]]").map_or("", |start| &v6[start..]);
        let both = v4 + listeners_v6;
        match self {
            Self::Weights => both.replacen("port = 8080\n", "port = 8080\nweight = 3\n", 1),
            _ => both,
        }
    }

    fn of_family(self, lab: &Lab, family: Family) -> Config {
        let named = |v4, v6| if family == Family::V4 { v4 } else { v6 };
        let web = Service { name: named("web", "web6"), ..Service::WEB };
        let echo = Service { name: named("echo", "echo6"), ..Service::ECHO };
        let mut config = Config {
            services: vec![web, echo],
            // Each change of a server's health changes the rotation well within the second.
            interval_ms: 250,
            retries: 1,
            ..Config::new(lab, family)
        };
        match self {
            Self::Fewer => config.backends.truncate(2),
            Self::MoreVips => config.vips.push(second_vip(family)),
            Self::All | Self::Weights => {}
        }
        config
    }
}

fn second_vip(family: Family) -> std::net::IpAddr {
    family.lan(101)
}

/// Traffic that goes on until it is told to stop, and tells everybody else to when something fails.
struct Traffic<'a> {
    lab: &'a Lab,
    /// Changes of a server's health.
    flaps: AtomicUsize,
    is_over: AtomicBool,
}

impl Traffic<'_> {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Repeats `work` until the end; how often that was.
    fn repeat(&self, mut work: impl FnMut(usize) -> Result<()>) -> Result<usize> {
        let mut times = 0;
        while self.goes_on() {
            work(times).inspect_err(|_| self.end())?;
            times += 1;
        }
        Ok(times)
    }

    /// Waits until `since` is so long ago, or everything is over.
    fn pace(&self, since: Instant, length: Duration) {
        while self.goes_on() && since.elapsed() < length {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a piece through each connection in turn.
    fn transfer(&self, mut sessions: Vec<Session>) -> Result<usize> {
        let piece = [b'x'; PIECE];
        self.repeat(|round| {
            let begin = Instant::now();
            for (number, session) in sessions.iter_mut().enumerate() {
                session
                    .echo(&piece)
                    .with_context(|| format!("connection {number} is broken after {round} pieces"))?;
            }
            self.pace(begin, PACE);
            Ok(())
        })
    }

    fn request(&self, family: Family) -> Result<usize> {
        self.repeat(|_| traffic::curl_many(&self.lab.client, family.vip_port(80), REQUESTS).map(drop))
    }

    fn ask(&self, family: Family) -> Result<usize> {
        self.repeat(|_| {
            let begin = Instant::now();
            traffic::ask_udp_many(&self.lab.client, family.vip_port(7), REQUESTS)?;
            self.pace(begin, PACE);
            Ok(())
        })
    }

    /// Lets one server after the other fail its checks, and pass them again.
    fn flap(&self) -> Result<usize> {
        self.repeat(|turn| {
            let begin = Instant::now();
            let server = &self.lab.backends[turn / 2 % self.lab.backends.len()];
            let status = [503, 200][turn % 2];
            let address = server.address(Family::V4);
            let put = format!(
                "curl --silent --show-error --fail --request PUT http://{address}:{HTTP_PORT}/health/{status}"
            );
            self.lab.balancer.run(&put)?.success()?;
            self.flaps.fetch_add(1, Ordering::Relaxed);
            self.pace(begin, FLAP);
            Ok(())
        })
    }
}

/// A copy of `lb` that calls itself another version, in a file of its own that goes with this value.
struct OtherVersion(PathBuf);

impl OtherVersion {
    fn make() -> Result<Self> {
        let version = |program: &Path| -> Result<String> {
            let output = process::Command::new(program).arg("--version").output()?;
            let text = String::from_utf8(output.stdout)?;
            Ok(text.trim().rsplit(' ').next().unwrap_or_default().to_owned())
        };
        let lb = binary("lb")?;
        let own = version(&lb)?;
        let last = own.chars().last().with_context(|| format!("{} has no version", lb.display()))?;
        let other = format!("{}{}", &own[..own.len() - last.len_utf8()], if last == '9' { '8' } else { '9' });

        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lb-{}", process::id()));
        fs::copy(&lb, &copy)?;
        let made = Self(copy);
        let mut program = fs::read(&made.0)?;
        let mut at = 0;
        while let Some(found) = program[at..].windows(own.len()).position(|bytes| bytes == own.as_bytes()) {
            at += found;
            program[at..at + own.len()].copy_from_slice(other.as_bytes());
        }
        fs::write(&made.0, program)?;
        ensure!(version(&made.0)? == other, "{} does not call itself {other}", made.0.display());
        Ok(made)
    }
}

impl Drop for OtherVersion {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Starts a program as `lb run`, which has to adopt what is there.
fn adopt(lab: &Lab, program: &Path) -> Result<Lb> {
    let mut command = lab.balancer.command(program);
    command.args(["run", "--config", CONFIG]);
    let lb = Lb::start_command(&lab.balancer, command, true)?;
    ensure!(lb.log().contains("adopted the pinned data plane"), "{}", lb.log());
    Ok(lb)
}

/// All reloads, kills and upgrades; ends early when the traffic has failed.
fn operate(lab: &Lab, mut lb: Lb, other: &OtherVersion, traffic: &Traffic<'_>) -> Result<Lb> {
    let own = binary("lb")?;
    let mut versions = [&other.0, &own].into_iter().cycle();
    for reloads in 1..=RELOADS {
        wait::until("as many changes of health as reloads", LONG, || {
            let is_due = !traffic.goes_on() || traffic.flaps.load(Ordering::Relaxed) >= reloads;
            Ok(is_due.then_some(()))
        })?;
        if !traffic.goes_on() {
            break;
        }
        let stage = Stage::after(reloads);
        lb.reload(&stage.config(lab)).with_context(|| format!("reload {reloads}: {stage:?}"))?;
        if stage == Stage::MoreVips {
            for family in Family::ALL {
                let vip = std::net::SocketAddr::new(second_vip(family), 80);
                traffic::curl(&lab.client, vip).context("a VIP that came by a reload")?;
            }
        }
        if KILLS.contains(&reloads) {
            lb.kill9()?;
            lb = adopt(lab, &own)?;
        }
        if UPGRADES.contains(&reloads) {
            lb.stop()?;
            lb = adopt(lab, versions.next().unwrap_or(&own))?;
        }
    }
    Ok(lb)
}

/// What the rotation of this controller has gone through.
fn wait_for_flaps(lb: &Lb) -> Result<()> {
    wait::until("a server to leave the rotation and to return", LONG, || {
        let states = lb.history("web")?;
        let left = states.iter().any(|transition| transition["to"] == "CRITICAL");
        let returned = states.iter().any(|transition| transition["from"] == "CRITICAL");
        Ok((left && returned).then_some(()))
    })
}

#[test]
fn nothing_that_is_done_to_a_running_balancer_breaks_a_connection_or_fails_a_request() -> Result<()> {
    // Before there are other threads: a program that one of them starts would for a moment hold the file open for writing.
    let other = OtherVersion::make()?;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Stage::All.config(&lab), 3)?;
    let session = |number: usize| {
        let family = Family::ALL[number % Family::ALL.len()];
        Session::open(&lab.client, None, family.vip_port(7))
    };
    let mut shares: Vec<Vec<Session>> = Vec::new();
    for _ in 0..THREADS {
        shares.push((0..CONNECTIONS / THREADS).map(session).collect::<Result<_>>()?);
    }

    let traffic = Traffic { lab: &lab, flaps: AtomicUsize::new(0), is_over: AtomicBool::new(false) };
    // Processes die with the thread that starts them: the controllers belong to this one.
    let lb = lab.explained(|| {
        thread::scope(|scope| {
            let traffic = &traffic;
            let mut work = Vec::new();
            for sessions in shares.drain(..) {
                work.push(("pieces of each connection", scope.spawn(move || traffic.transfer(sessions))));
            }
            for family in Family::ALL {
                work.push(("calls of curl", scope.spawn(move || traffic.request(family))));
                work.push(("rounds of datagrams", scope.spawn(move || traffic.ask(family))));
            }
            work.push(("changes of health", scope.spawn(move || traffic.flap())));
            let operated = operate(&lab, lb, &other, traffic).and_then(|lb| {
                wait_for_flaps(&lb)?;
                Ok(lb)
            });
            traffic.end();
            let mut counts = Vec::new();
            for (what, thread) in work {
                let count = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                println!("{count} {what}");
                counts.push((what, count));
            }
            // Where the work on the balancer broke off, there was not time for as much.
            let lb = operated?;
            for (what, count) in counts {
                ensure!(count >= RELOADS, "only {count} {what}: this shows nothing");
            }
            Ok(lb)
        })
    })?;
    lb.stop()
}
