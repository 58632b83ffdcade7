//go:build ignore

// Process 1 of the guests that bench-wan moves. It has a disk that is a Debian root, mounted
// read-only at /root, does what work=… on the kernel's command line says, and counts on the
// console, five times a second.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	err := run()
	fmt.Printf("FAILED %v\n", err)
	time.Sleep(time.Second)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := begin(syscall.MS_RDONLY, "noload"); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	work := ""
	for _, word := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(word, "work="); ok {
			work = v
		}
	}
	do, ok := map[string]func(ready func()) error{"idle": idle, "db": database, "cache": cache, "churn": churn}[work]
	if !ok {
		return fmt.Errorf("no work %q", work)
	}
	go func() {
		for n := 1; ; n++ {
			fmt.Printf("TICK %d\n", n)
			time.Sleep(200 * time.Millisecond)
		}
	}()
	return do(func() { fmt.Println("READY") })
}

// idle has read 130 MB of programs and libraries, and does nothing any more.
func idle(ready func()) error {
	left := int64(130 << 20)
	for _, dir := range []string{"/root/usr/bin", "/root/usr/lib"} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || left < 0 {
				return nil
			}
			content, err := os.ReadFile(name)
			left -= int64(len(content))
			return err
		})
		if err != nil {
			return err
		}
	}
	ready()
	select {}
}

const (
	recordSize = 512
	records    = 96 << 20 / recordSize
	walSize    = 4 << 20
	updates    = 8000 // a second
)

// database has 96 MB of records of 512 bytes in memory, in digits and hexadecimal, and rewrites
// fields of 8,000 of them a second, anywhere, each with an entry in a ring of 4 MiB.
func database(ready func()) error {
	r := rand.New(rand.NewPCG(1, 2))
	// Not from the heap: its collector would let as much garbage pile up.
	all, err := syscall.Mmap(-1, 0, records*recordSize+walSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	data, wal, end := all[:records*recordSize], all[records*recordSize:], 0
	for i := range records {
		rec := data[i*recordSize : (i+1)*recordSize]
		n := copy(rec, fmt.Sprintf("id=%012d;balance=%012d;version=%08d;name=customer-%08x;", i, r.IntN(1e9), 1, r.Uint32()))
		for n < recordSize {
			n += copy(rec[n:], fmt.Sprintf("%016x", r.Uint64()))
		}
	}
	ready()
	const every = 10 * time.Millisecond
	for tick := time.NewTicker(every); ; <-tick.C {
		for range updates / int(time.Second/every) {
			i := r.IntN(records)
			rec := data[i*recordSize : (i+1)*recordSize]
			copy(rec[24:], fmt.Sprintf("%012d", r.IntN(1e9)))
			copy(rec[45:], fmt.Sprintf("%08d", r.IntN(1e8)))
			entry := wal[end : end+128]
			binary.LittleEndian.PutUint64(entry, uint64(i))
			copy(entry[8:], rec[:120])
			end = (end + 128) % walSize
		}
	}
}

// cache is a redis with 60,000 hashes, of which 2,000 fields are set or counted up a second.
func cache(ready func()) error {
	if err := up("lo"); err != nil {
		return err
	}
	server, err := os.StartProcess("/redis/ld.so", []string{"ld.so", "--library-path", "/redis", "/redis/redis-server", "--save", "", "--bind", "127.0.0.1", "--dir", "/", "--io-threads", "1"},
		&os.ProcAttr{Env: []string{"PATH=/"}, Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	defer server.Wait()
	var conn net.Conn
	for range 600 {
		if conn, err = net.Dial("tcp", "127.0.0.1:6379"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("reach redis: %w", err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	send := func(words ...string) {
		fmt.Fprintf(out, "*%d\r\n", len(words))
		for _, w := range words {
			fmt.Fprintf(out, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	answers := func(n int) error {
		if err := out.Flush(); err != nil {
			return err
		}
		for range n {
			if line, err := in.ReadString('\n'); err != nil || line[0] == '-' {
				return fmt.Errorf("redis says %q: %w", line, err)
			}
		}
		return nil
	}
	const hashes, batch = 60000, 100
	for i := 0; i < hashes; i += batch {
		for k := i; k < i+batch; k++ {
			send("HSET", fmt.Sprintf("session:%08d", k), "user", fmt.Sprintf("user-%08x", r.Uint32()), "token", fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()), "hits", "0", "page", fmt.Sprintf("/shop/item/%d", r.IntN(1e6)))
		}
		if err := answers(batch); err != nil {
			return err
		}
	}
	ready()
	for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
		for range 50 {
			key := fmt.Sprintf("session:%08d", r.IntN(hashes))
			send("HINCRBY", key, "hits", "1")
			send("HSET", key, "page", fmt.Sprintf("/shop/item/%d", r.IntN(1e6)))
		}
		if err := answers(100); err != nil {
			return err
		}
	}
}

// churn compiles, packs, sorts and removes files in memory, with the disk's own programs.
func churn(ready func()) error {
	if err := errors.Join(mount("tmpfs", "/root/tmp"), mount("devtmpfs", "/root/dev"), mount("proc", "/root/proc")); err != nil {
		return err
	}
	const script = `
mkdir -p /tmp/src && cd /tmp/src
find /usr/lib/python3* /usr/share/perl -name '*.p[ym]' | head -400 | tar cf - -T - 2>/dev/null | tar xf -
tar czf ../src.tgz .
sort $(find . -name '*.py' | head -60) > ../sorted
for f in a b c d e f; do
	printf 'int v_%s[4096];\nint f_%s(int x) { int i, s = 0; for (i = 0; i < 4096; i++) s += v_%s[i] * x + i; return s; }\n' $f $f $f > $f.c
	gcc -O2 -c $f.c
done
cd / && rm -rf /tmp/src /tmp/src.tgz /tmp/sorted
`
	go func() { time.Sleep(20 * time.Second); ready() }()
	for {
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Dir: "/", Env: []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, Files: []*os.File{nil, nil, nil},
			Sys: &syscall.SysProcAttr{Chroot: "/root"}})
		if err != nil {
			return fmt.Errorf("start work: %w", err)
		}
		if _, err := p.Wait(); err != nil {
			return err
		}
	}
}

// up is what "ip link set NAME up" does.
func up(name string) error {
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(s)
	var request [40]byte
	copy(request[:15], name)
	binary.NativeEndian.PutUint16(request[16:], syscall.IFF_UP|syscall.IFF_RUNNING)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(s), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
