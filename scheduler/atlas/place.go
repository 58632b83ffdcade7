package atlas

import "math"

// sweeps of the majorisation: maps have few sites, and after these none moves visibly.
const sweeps = 300

// Place puts points on a plane so that they are as far from each other as d says, as well
// as that can be: where classical scaling puts them, and from there on by majorisation of
// the stress, in which a distance counts by how far it is off as a share of itself (Gansner,
// Koren and North 2004). Unknown distances, which are not above 0, are those of the
// shortest way. The widest direction is x. The same d gives the same places.
func Place(d [][]float64) [][2]float64 {
	d = complete(d)
	at := classical(d)
	for range sweeps {
		for i := range at {
			at[i] = nearer(at, d, i)
		}
	}
	return upright(at)
}

// complete fills what is not known of d.
func complete(d [][]float64) [][]float64 {
	n := len(d)
	all, far := make([][]float64, n), 0.0
	for i := range all {
		all[i] = make([]float64, n)
		for j := range all[i] {
			v := math.Max(d[i][j], d[j][i])
			switch {
			case i == j:
			case v > 0 && !math.IsInf(v, 0):
				all[i][j], far = v, max(far, v)
			default:
				all[i][j] = math.Inf(1)
			}
		}
	}
	for k := range n {
		for i := range n {
			for j := range n {
				all[i][j] = min(all[i][j], all[i][k]+all[k][j])
			}
		}
	}
	if far == 0 {
		far = 1
	}
	for i := range n {
		for j := range n {
			if math.IsInf(all[i][j], 1) { // no way at all
				all[i][j] = 1.5 * far
			}
		}
	}
	return all
}

// classical is the scaling of Torgerson: the two largest eigenvectors of the doubly centred
// squares of the distances.
func classical(d [][]float64) [][2]float64 {
	n := len(d)
	at := make([][2]float64, n)
	b := make([][]float64, n)
	mean, all := make([]float64, n), 0.0
	for i := range d {
		b[i] = make([]float64, n)
		for j := range d {
			mean[i] += d[i][j] * d[i][j] / float64(n)
		}
		all += mean[i] / float64(n)
	}
	for i := range d {
		for j := range d {
			b[i][j] = -(d[i][j]*d[i][j] - mean[i] - mean[j] + all) / 2
		}
	}
	for axis := range 2 {
		v, value := eigen(b)
		for i := range at {
			at[i][axis] = v[i] * math.Sqrt(max(0, value))
			for j := range at {
				b[i][j] -= value * v[i] * v[j]
			}
		}
	}
	if n > 2 { // what is on one line would never leave it
		for i := range at {
			at[i][1] += 1e-3 * d[0][n-1] * math.Sin(float64(1+i*i))
		}
	}
	return at
}

// eigen is the largest eigenvector of b, by powers of it. A shift makes the largest one the
// largest in size.
func eigen(b [][]float64) (v []float64, value float64) {
	n, shift := len(b), 0.0
	for _, row := range b {
		sum := 0.0
		for _, x := range row {
			sum += math.Abs(x)
		}
		shift = max(shift, sum)
	}
	v = make([]float64, n)
	for i := range v {
		v[i] = math.Sin(float64(i + 1)) // any that is in no plane that matters
	}
	if shift == 0 {
		return v, 0
	}
	for range 500 {
		next, size := make([]float64, n), 0.0
		for i, row := range b {
			next[i] = shift * v[i]
			for j, x := range row {
				next[i] += x * v[j]
			}
			size += next[i] * next[i]
		}
		size = math.Sqrt(size)
		for i := range next {
			next[i] /= size
		}
		v, value = next, size-shift
	}
	return v, value
}

// nearer is where the i-th point has less stress, the others staying.
func nearer(at [][2]float64, d [][]float64, i int) [2]float64 {
	var sum [2]float64
	weight := 0.0
	for j := range at {
		if i == j {
			continue
		}
		dx, dy := at[i][0]-at[j][0], at[i][1]-at[j][1]
		far := math.Hypot(dx, dy)
		if far < 1e-9*d[i][j] { // in one place: apart in some direction
			dy, dx = math.Sincos(float64(i))
			far = 1
		}
		w := 1 / (d[i][j] * d[i][j])
		sum[0] += w * (at[j][0] + d[i][j]*dx/far)
		sum[1] += w * (at[j][1] + d[i][j]*dy/far)
		weight += w
	}
	if weight == 0 {
		return at[i]
	}
	return [2]float64{sum[0] / weight, sum[1] / weight}
}

// upright turns points so that x is their widest direction, about their middle, with the
// first of them on the left and above.
func upright(at [][2]float64) [][2]float64 {
	var mean [2]float64
	for _, p := range at {
		mean[0] += p[0] / float64(len(at))
		mean[1] += p[1] / float64(len(at))
	}
	var xx, xy, yy float64
	for _, p := range at {
		dx, dy := p[0]-mean[0], p[1]-mean[1]
		xx, xy, yy = xx+dx*dx, xy+dx*dy, yy+dy*dy
	}
	sin, cos := math.Sincos(math.Atan2(2*xy, xx-yy) / 2)
	turned := make([][2]float64, len(at))
	for i, p := range at {
		dx, dy := p[0]-mean[0], p[1]-mean[1]
		turned[i] = [2]float64{cos*dx + sin*dy, cos*dy - sin*dx}
	}
	for axis := range 2 {
		if len(turned) > 0 && turned[0][axis] > 0 {
			for i := range turned {
				turned[i][axis] = -turned[i][axis]
			}
		}
	}
	return turned
}
