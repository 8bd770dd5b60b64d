import time, torch, warnings, logging
warnings.filterwarnings('ignore'); logging.getLogger('pytorch_lightning').setLevel(40)
torch.set_num_threads(1)
from tests.baselines.mobile_vton.two_records import *
t=time.time(); T=taught(); print('teacher', time.time()-t)
m0=module({'consistency':.5}); print('fresh', samples_error(m0))
for name,w,n,o in [('diff',{'diffusion':1},60,{}),('cons',{'consistency':.5},60,{}),('feature',{'feature':1},150,{}),('gan',{'adversarial':1},100,{}),('paper',dict(diffusion=1,feature=1e-2,adversarial=5e-3,consistency=.5),60,{})]:
    t=time.time(); m=module(w,**o); e0=samples_error(m); log=fit(m,n); 
    print(name, round(time.time()-t,1), 'err', [round(x,3) for x in e0], [round(x,3) for x in samples_error(m)], m.trainer.global_step)
    for k in log.rows[0]: print('   ',k, [round(log.mean(k, slice(i,i+10)),4) for i in range(0,n,max(10,n//6//10*10))])
