package schedbench

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// world is where sites can be: prices and distances between regions.
type world struct {
	real      bool
	regions   []string
	rttMs     [][]float64
	usdPerGB  [][]float64
	usdPerVC  []float64 // per vCPU and hour, memory included: on demand
	spotPerVC []float64
}

// The files of the real world, in the directory of --data.
const (
	rttFile    = "wan_rtt_skyplane_2022.csv"
	egressFile = "wan_egress_cost_usd_per_gb_skyplane.csv"
	priceFile  = "gcp_spot_2023_2026.csv"

	priced      = "n2-standard-8"
	pricedVCPUs = 8
)

// load reads the real world: regions of which distance, egress and price are all known.
func load(dir string) (*world, error) {
	rtt, err := pairs(filepath.Join(dir, rttFile), 0, 2, 5)
	if err != nil {
		return nil, err
	}
	egress, err := pairs(filepath.Join(dir, egressFile), 0, 1, 4)
	if err != nil {
		return nil, err
	}
	w := &world{real: true}
	demand, spot, err := prices(filepath.Join(dir, priceFile))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for p := range rtt {
		names[p[0]] = true
	}
	for name := range names {
		if demand[region(name)] > 0 {
			w.regions = append(w.regions, name)
		}
	}
	slices.Sort(w.regions)
	w.regions = slices.DeleteFunc(w.regions, func(a string) bool {
		missing := 0
		for _, b := range w.regions {
			_, there := rtt[[2]string{a, b}]
			_, back := rtt[[2]string{b, a}]
			_, paid := egress[[2]string{a, b}]
			if a != b && (!there && !back || !paid) {
				missing++
			}
		}
		return missing > len(w.regions)/3
	})
	w.fill(rtt, egress, demand, spot)
	return w, nil
}

func (w *world) fill(rtt, egress map[[2]string]float64, demand, spot map[string]float64) {
	n := len(w.regions)
	known := func(m map[[2]string]float64, a, b string) float64 {
		if x, ok := m[[2]string{a, b}]; ok {
			return x
		}
		return m[[2]string{b, a}]
	}
	for _, a := range w.regions {
		ms, usd := make([]float64, n), make([]float64, n)
		for j, b := range w.regions {
			if a != b {
				ms[j], usd[j] = known(rtt, a, b), known(egress, a, b)
			}
		}
		w.rttMs, w.usdPerGB = append(w.rttMs, ms), append(w.usdPerGB, usd)
		name := region(a)
		w.usdPerVC, w.spotPerVC = append(w.usdPerVC, demand[name]), append(w.spotPerVC, spot[name])
	}
}

// region is the region of a zone as prices name it: of gcp:asia-east1-a, asia-east1.
func region(zone string) string {
	name := strings.TrimPrefix(zone, "gcp:")
	if i := len(name) - 2; i > 0 && name[i] == '-' {
		return name[:i]
	}
	return name
}

// rows reads a file without its head.
func rows(name string) ([][]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read data: %w", err)
	}
	defer file.Close()
	all, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(all) < 2 {
		return nil, fmt.Errorf("read %s: it has no rows", name)
	}
	return all[1:], nil
}

// pairs reads one number of each pair of names.
func pairs(name string, from, to, value int) (map[[2]string]float64, error) {
	all, err := rows(name)
	if err != nil {
		return nil, err
	}
	m := make(map[[2]string]float64, len(all))
	for _, row := range all {
		x, err := strconv.ParseFloat(row[value], 64)
		if err != nil || slices.Contains(row, "STANDARD") {
			continue // a pair that was not measured, or the slower of two networks
		}
		m[[2]string{row[from], row[to]}] = x
	}
	return m, nil
}

// prices are the latest of each region, per vCPU and hour.
func prices(name string) (demand, spot map[string]float64, err error) {
	all, err := rows(name)
	if err != nil {
		return nil, nil, err
	}
	demand, spot = map[string]float64{}, map[string]float64{}
	for _, row := range all { // by date
		if row[1] != priced {
			continue
		}
		if x, err := strconv.ParseFloat(row[3], 64); err == nil {
			demand[row[2]] = x / pricedVCPUs
		}
		if x, err := strconv.ParseFloat(row[4], 64); err == nil {
			spot[row[2]] = x / pricedVCPUs
		}
	}
	return demand, spot, nil
}

// invent makes a world of regions on a globe, for where there is no real data.
func invent(n int, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{}
	type point struct{ x, y, z float64 }
	var at []point
	for i := range n {
		p := point{r.NormFloat64(), r.NormFloat64(), r.NormFloat64()}
		size := math.Sqrt(p.x*p.x + p.y*p.y + p.z*p.z)
		at = append(at, point{p.x / size, p.y / size, p.z / size})
		w.regions = append(w.regions, fmt.Sprintf("region-%d", i))
		w.usdPerVC = append(w.usdPerVC, 0.04+0.03*r.Float64())
		w.spotPerVC = append(w.spotPerVC, 0.01+0.015*r.Float64())
	}
	for i, p := range at {
		ms, usd := make([]float64, n), make([]float64, n)
		leaves := []float64{0.02, 0.05, 0.08, 0.12}[r.IntN(4)]
		for j, q := range at {
			if i != j {
				angle := math.Acos(min(1, max(-1, p.x*q.x+p.y*q.y+p.z*q.z)))
				ms[j], usd[j] = 5+90*angle, leaves*(0.5+min(1, angle))
			}
		}
		w.rttMs, w.usdPerGB = append(w.rttMs, ms), append(w.usdPerGB, usd)
	}
	return w
}

// worldOf loads the real world where its files are, and invents one where they are not.
func worldOf(dir string) (*world, error) {
	if dir == "" {
		return invent(40, 1), nil
	}
	w, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return invent(40, 1), nil
	}
	return w, err
}
