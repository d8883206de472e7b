//! TCP through the sockets of both ends: short connections, and requests on one that lasts.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_tests::netns::wait;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bulk::discard;
use crate::cores::Worked;
use crate::site::{BULK_PORT, CLIENTS, PATIENCE, REQUEST_PORT, Site};

/// Bytes of a request, and of its answer.
const REQUEST: usize = 64;
/// Short connections at a time.
const VISITORS: usize = 32;
/// Bytes that show that bulk arrives.
const BULK: usize = 640 * 1024;
/// From one request of the connection that lasts to the next.
const PAUSE: Duration = Duration::from_micros(500);
/// How long traffic runs before it is measured.
const RUN_UP: Duration = Duration::from_millis(300);

/// How long clients may take in all, their last connections included.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(30);

/// The backends' servers, of all sites.
pub(crate) struct Servers {
    /// Bytes that the bulk servers have got.
    pub(crate) bulk: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Servers {
    /// Begins to listen on the backends' host of each site.
    pub(crate) fn start(sites: &[Site]) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let bulk = Arc::new(AtomicU64::new(0));
        for site in sites {
            for port in [REQUEST_PORT, BULK_PORT] {
                let listener = site.backend.enter(|| {
                    let _inside = runtime.enter();
                    let socket = TcpSocket::new_v4()?;
                    socket.set_reuseaddr(true)?;
                    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
                    Ok(socket.listen(4096)?)
                })?;
                runtime.spawn(serve(listener, (port == BULK_PORT).then(|| Arc::clone(&bulk))));
            }
        }
        Ok(Self { bulk, _runtime: runtime })
    }
}

/// Serves every connection until the other end closes it: answers, or counts.
async fn serve(listener: TcpListener, bulk: Option<Arc<AtomicU64>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let bulk = bulk.clone();
        tokio::spawn(async move {
            // Fails only if it cannot be set on a connection that is gone already.
            let _ = stream.set_nodelay(true);
            // A connection that breaks is its client's to complain about.
            let _ = match &bulk {
                Some(bytes) => discard(&stream, bytes).await,
                None => answer(&mut stream).await,
            };
        });
    }
}

/// Sends back what arrives until the other end closes the connection.
async fn answer(stream: &mut tokio::net::TcpStream) -> Result<()> {
    let mut buffer = [0; REQUEST];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}

/// What a while of traffic came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Connections or bytes, each second.
    pub(crate) rate: f64,
    /// Nanoseconds of the balancer's threads for each of them.
    pub(crate) cost: f64,
    /// The same, of all that its CPU did.
    pub(crate) cost_of_cpu: f64,
}

/// What clients share with whoever measures them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Book {
    /// Whether clients are to go on.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }
}

impl Site {
    /// An exchange on each port of the service, with a content that is looked at.
    pub(crate) fn check_sockets(&mut self, servers: &Servers) -> Result<()> {
        self.without_programs()?;
        let targets = self.targets();
        self.client.enter(|| {
            for (number, target) in targets.iter().cycle().take(16).enumerate() {
                let mut stream = connect((*target, REQUEST_PORT).into())?;
                exchange(&mut stream, &std::array::from_fn(|place| (place * 7 + number) as u8))?;
            }
            let before = servers.bulk.load(Ordering::Relaxed);
            connect((targets[0], BULK_PORT).into())?.write_all(&[1; BULK])?;
            wait::until("bulk to arrive", PATIENCE, || {
                let arrived = servers.bulk.load(Ordering::Relaxed) - before;
                Ok((arrived == BULK as u64).then_some(()))
            })
        })
    }

    /// Opens, uses and closes connections for so long.
    pub(crate) fn short_connections(&mut self, time: Duration) -> Result<Pace> {
        let book = Book::default();
        let targets = self.targets();
        let visitors = (0..VISITORS).map(|number| visit(book.clone(), targets, number));
        self.pace(&book, &book.done, time, visitors.collect())
    }

    /// Runs clients, and reads off `count` and the balancer's work how they get on.
    pub(crate) fn pace<C>(
        &mut self,
        book: &Book,
        count: &AtomicU64,
        time: Duration,
        clients: Vec<C>,
    ) -> Result<Pace>
    where
        C: Future<Output = Result<()>> + Send + 'static,
    {
        self.without_programs()?;
        let work = self.work()?;
        thread::scope(|scope| {
            let running = scope.spawn(|| self.client.enter(|| run(clients)));
            let read = || -> Result<(u64, Instant, Worked)> {
                Ok((count.load(Ordering::Relaxed), Instant::now(), work.so_far()?))
            };
            thread::sleep(RUN_UP);
            let before = read();
            thread::sleep(time);
            let after = read();
            book.is_over.store(true, Ordering::Relaxed);
            running.join().map_err(|_| anyhow!("the clients panicked"))??;
            let ((before, begin, idle), (after, end, worked)) = (before?, after?);
            ensure!(after > before, "nothing went through in {time:?}");
            let (number, (threads, load)) = ((after - before) as f64, worked.since(&idle));
            let seconds = (end - begin).as_secs_f64();
            Ok(Pace {
                rate: number / seconds,
                cost: threads.as_secs_f64() * 1e9 / number,
                cost_of_cpu: load * seconds * 1e9 / number,
            })
        })
    }

    /// How long each request takes on one connection, with a pause between them: the sorted times.
    pub(crate) fn requests(&mut self, time: Duration) -> Result<Vec<Duration>> {
        self.without_programs()?;
        let target = self.targets()[0];
        self.client.enter(|| {
            let mut stream = connect((target, REQUEST_PORT).into())?;
            // The first one waits for whatever a proxy does about a new connection.
            exchange(&mut stream, &[0; REQUEST])?;
            let (begin, mut times) = (Instant::now(), Vec::new());
            while begin.elapsed() < time {
                let asked = Instant::now();
                exchange(&mut stream, &[times.len() as u8; REQUEST])?;
                times.push(asked.elapsed());
                thread::sleep(PAUSE);
            }
            times.sort_unstable();
            Ok(times)
        })
    }

    fn without_programs(&mut self) -> Result<()> {
        self.client_end.detach()?;
        self.backend_end.detach()
    }
}

/// Runs clients to their end, all of which must come to a good one.
fn run<C>(clients: Vec<C>) -> Result<()>
where
    C: Future<Output = Result<()>> + Send + 'static,
{
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let all = clients.into_iter().collect::<JoinSet<_>>().join_all();
        let outcomes = timeout(CLIENTS_PATIENCE, all).await.context("clients hang")?;
        outcomes.into_iter().collect()
    })
}

/// One short connection after the other: connect, request, answer, close.
async fn visit(book: Book, targets: &[Ipv4Addr], number: usize) -> Result<()> {
    let source = CLIENTS[number % CLIENTS.len()];
    let (request, mut answer) = ([number as u8; REQUEST], [0; REQUEST]);
    for target in targets.iter().cycle().skip(number) {
        if !book.is_open() {
            break;
        }
        let socket = TcpSocket::new_v4()?;
        // Else each port would serve a single connection of all to whatever target.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind((source, 0).into())?;
        let mut stream = socket.connect((*target, REQUEST_PORT).into()).await.context("connect")?;
        stream.write_all(&request).await?;
        stream.read_exact(&mut answer).await.context("read the answer")?;
        ensure!(answer == request, "the answer is not the request");
        book.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A request and its answer.
fn exchange(stream: &mut TcpStream, request: &[u8; REQUEST]) -> Result<()> {
    let mut answer = [0; REQUEST];
    stream.write_all(request)?;
    stream.read_exact(&mut answer).context("read the answer")?;
    ensure!(answer == *request, "the answer is not the request");
    Ok(())
}
