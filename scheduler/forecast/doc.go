// Package forecast tells what a demand or a price will be in the next hours, how sure that
// is, and when not to believe it.
//
// # What is expected
//
// A Series keeps the last values of each hour of the day and each hour of the week. What an
// hour usually has is the mean of the middle half of the day's and the median of the week's,
// so that a quarter of the values may be anything; the week counts the more, the more weeks
// were seen. How far the last hours were off is added, smoothed, and fades with the distance;
// an error of more than three times what is usual counts as three times that (as in Gelper,
// Fried, Croux: Robust forecasting with exponential and Holt-Winters smoothing, J. of
// Forecasting 29, 2010), so that an incident does not become a level.
//
// # How sure it is
//
// An interval is made of the quantiles of what past forecasts, as far ahead, were off by
// (split conformal prediction). The quantile itself is steered by how often intervals missed
// lately (Gibbs, Candès: Adaptive conformal inference under distribution shift, NeurIPS
// 2021), so that not many more values are outside than was asked for, whatever the series
// does, also one made by an adversary: of T values, h slots ahead, at most share·T +
// share/steer + h below, and as many above. The price is that an interval has no upper end
// where nothing is known, and after many misses.
//
// # When not to believe it
//
// A Guard holds what following the forecast has cost against what not following it would
// have, and stops it before the difference can exceed a bound.
//
// Everything is a value that can be stored as JSON, and time is an argument.
package forecast
