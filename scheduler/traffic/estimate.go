package traffic

import "math"

const (
	// z975 bounds a normal value from one side with 97.5 % confidence.
	z975 = 1.959964

	// largestPacket is the least size that a packet which was not looked at may have had;
	// where the packets of a cell are larger, theirs is taken. That a cell of which a few
	// small packets were seen also had segments of 64 KB is not covered: no sample says so.
	largestPacket = 1500
)

// unseenBytes is what may be in a cell of which no sample was taken, with 97.5 % confidence:
// at a mean of 3.69 samples, 2.5 % of cells have none.
func unseenBytes(sampling uint32) float64 {
	if sampling <= 1 {
		return 0
	}
	return 3.69 * float64(sampling) * largestPacket
}

// truncatedLow are, for 2 to 7 samples, the means of Poisson variables that reach so many
// in 2.5 % of the cases in which they are not 0. A cell without a sample is not there, and
// of many short conversations those few are seen that were lucky: the usual bound would
// say too much of them. From 8 on the two are the same within 1 %.
var truncatedLow = [...]float64{2: 0.0504, 3: 0.4083, 4: 0.9333, 5: 1.5200, 6: 2.1375, 7: 2.7759, 8: 3.4316}

// Estimate is a number of bytes that was told by counts of any sampling.
type Estimate struct {
	Bytes    float64
	sampled  float64 // the part of Bytes that is an estimate
	seen     float64 // bytes of the samples themselves
	variance float64 // of sampled, in bytes²: the sum of N(N−1)b² over the samples' bytes b
}

// Count takes a count of a bin in of which one of sampling packets was looked at.
func (e *Estimate) Count(c *Count, sampling uint32) {
	e.Bytes += float64(c.Bytes)
	if n := float64(sampling); c.Samples > 0 && sampling > 1 {
		e.sampled += float64(c.Bytes)
		e.seen += float64(c.Bytes) / n
		e.variance += n * (n - 1) * float64(c.Squares)
	}
}

// Add takes another estimate in, with a weight.
func (e *Estimate) Add(o Estimate, weight float64) {
	e.Bytes += weight * o.Bytes
	e.sampled += weight * o.sampled
	e.seen += weight * o.seen
	e.variance += weight * weight * o.variance
}

// Interval bounds the true number of bytes with 95 % confidence.
//
// A sum of samples of different size and sampling is a weighted sum of Poisson variables.
// The bounds are those of Fay and Feuer (Stat. Med. 16, 1997), of a gamma variable with the
// same mean and variance, above with one more sample of the largest weight; they are
// Garwood's where all weights are the same, and the normal ones where there are many. The
// quantiles are Wilson and Hilferty's, which are within 1 % here.
func (e Estimate) Interval() (low, high float64) {
	if e.variance <= 0 || e.seen <= 0 {
		return e.Bytes, e.Bytes
	}
	n := e.sampled / e.seen // 1 of so many was looked at
	unit := e.variance / e.sampled
	low = unit * gammaQuantile(e.sampled/unit, -z975)
	if n > 1 {
		unit := unit * n / (n - 1)
		if samples := e.sampled / unit; samples < float64(len(truncatedLow)-1) {
			i := int(samples)
			low = unit * (truncatedLow[i] + (samples-float64(i))*(truncatedLow[i+1]-truncatedLow[i]))
		}
	}
	largest := max(largestPacket*n, unit)
	mean := e.sampled + largest
	unit = (e.variance + largest*largest) / mean
	high = unit * gammaQuantile(mean/unit, z975)
	whole := e.Bytes - e.sampled
	return whole + max(low, e.seen), whole + max(high, e.sampled)
}

// gammaQuantile is the quantile of a gamma variable at the normal quantile z.
func gammaQuantile(shape, z float64) float64 {
	root := 1 - 1/(9*shape) + z/(3*math.Sqrt(shape))
	return shape * max(root, 0) * max(root, 0) * max(root, 0)
}
