package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What operations fail with; test with errors.Is.
var (
	ErrNotFound  = errors.New("not found")
	ErrConflict  = errors.New("changed meanwhile")           // a key has another revision than expected
	ErrStaleTerm = errors.New("no longer the leader")        // Fenced failed
	ErrMoving    = errors.New("the VM is on the move")       // StartMove, ApplyTopology
	ErrTooLarge  = errors.New("too large for a transaction") // over 8 MiB or 10,000 operations
)

// ErrUnavailable says that whether a write took effect is unknown.
const ErrUnavailable unavailable = "the store does not answer"

type unavailable string

func (u unavailable) Error() string { return string(u) }

// Unavailable tells that to try again may help, to those who do not know this package.
func (u unavailable) Unavailable() bool { return true }

const (
	root = "/heliotrope/v1/"

	maxTxnOps       = 10_000
	maxRequestBytes = 8 << 20
)

// Config says where the state is kept.
type Config struct {
	Dir       string        // of the embedded store; made with mode 0700
	Endpoints []string      // of an external cluster; where given, Dir is not used
	TLS       *tls.Config   // for Endpoints
	Name      string        // of this controller in the election; default: the host's name
	Timeout   time.Duration // for one operation; default 5 s
	Log       *slog.Logger  // told of what needs a look; nil: silent
}

// Store is an open store. Make it with Open.
type Store struct {
	client  *clientv3.Client
	stop    func() // ends the embedded server, if there is one
	name    string
	timeout time.Duration
	lease   int64 // seconds
	log     *slog.Logger
	terms   terms
}

// Open opens the store, and creates it where Dir is empty. ctx bounds the opening only.
// Two processes cannot open one Dir: the second waits for the first until ctx ends.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{name: cfg.Name, timeout: cfg.Timeout, log: cfg.Log, stop: func() {}}
	if s.timeout == 0 {
		s.timeout = 5 * time.Second
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.name == "" {
		s.name = hostname()
	}
	var err error
	if len(cfg.Endpoints) > 0 {
		s.lease = leaseTTL
		s.client, err = dial(cfg)
	} else {
		s.lease = leaseAlone
		s.client, s.stop, err = startEmbedded(ctx, cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.welcome(ctx, len(cfg.Endpoints) == 0); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.Close())
	}
	return s, nil
}

// welcome asks the store a first question. The embedded store has no other client than
// this process, so an election key found in it is a dead predecessor's: removed, so that
// nobody waits for its lease to end.
func (s *Store) welcome(ctx context.Context, alone bool) error {
	if alone {
		_, err := s.client.Delete(ctx, root+leaderPrefix, clientv3.WithPrefix())
		return s.fail(err)
	}
	return s.Ping(ctx)
}

func dial(cfg Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		MaxCallSendMsgSize:   2 * maxRequestBytes,
		MaxCallRecvMsgSize:   64 << 20,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{ // back within 2 s of the cluster
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		})},
	})
}

// Close ends the client and the embedded server. Watches and elections end with it.
func (s *Store) Close() error {
	err := s.client.Close()
	s.stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Ping returns nil when the store answers a linearizable read.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.client.Get(ctx, root+"topology", clientv3.WithCountOnly())
	return s.fail(err)
}

// fail gives an error of etcd the meaning that callers branch on.
func (s *Store) fail(err error) error {
	if err == nil {
		return nil
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, clientv3.ErrNoAvailableEndpoints) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
