package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// startEmbedded runs etcd with its data in dir/etcd and no listener at all: its only
// client is in this process.
func startEmbedded(ctx context.Context, dir string) (*clientv3.Client, func(), error) {
	if dir == "" {
		return nil, nil, errors.New("neither a directory nor endpoints are given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	e, err := startEtcd(ctx, filepath.Join(dir, "etcd"))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start etcd in %s: %w", dir, err), lock.Close())
	}
	stop := func() {
		e.Close()
		_ = lock.Close() // nothing was written to it
	}
	return v3client.New(e.Server), stop, nil
}

// lockDir waits until no other process has dir. The lock goes with the process, however
// it ends. (etcd takes one too, but waits for it for ever.)
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		pause(ctx, 50*time.Millisecond, true)
		if ctx.Err() != nil {
			err = fmt.Errorf("another process has it: %w", context.Cause(ctx))
			break
		}
	}
	return nil, errors.Join(fmt.Errorf("lock data directory %s: %w", dir, err), f.Close())
}

func startEtcd(ctx context.Context, dir string) (*embed.Etcd, error) {
	e, err := embed.StartEtcd(embeddedConfig(dir))
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("it stopped")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	e.Close()
	return nil, err
}

func embeddedConfig(dir string) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "heliotrope"
	cfg.Dir = dir
	nowhere := url.URL{Scheme: "http", Host: "localhost:0"} // a name only: nothing listens
	cfg.ListenClientUrls, cfg.ListenPeerUrls = nil, nil
	cfg.AdvertiseClientUrls = []url.URL{nowhere}
	cfg.AdvertisePeerUrls = []url.URL{nowhere}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.MaxTxnOps = maxTxnOps
	cfg.MaxRequestBytes = maxRequestBytes
	cfg.SnapshotCount = 5_000
	cfg.MaxSnapFiles, cfg.MaxWalFiles = 2, 2
	cfg.AutoCompactionMode = embed.CompactorModeRevision
	cfg.AutoCompactionRetention = "5000"
	// It has no peers: an election among one need not wait a second.
	cfg.TickMs, cfg.ElectionMs = 20, 100
	return cfg
}
